"""Rough edges of torch and NNI, each met in one small function.

Nothing else in the package works around a version of torch or NNI; when one of them changes, these
are the files to look at. Neither torch nor NNI is imported before it is needed.
"""

from nni_gconv.compat.nni_compression import (
    evaluator_input,
    evaluator_optimizer,
    has_scale_and_shift,
    is_wrapped,
    learn_optimizer,
    let_lightning_stop,
    register_pruning_types,
    split_parameter_groups,
    take_over_weights,
)
from nni_gconv.compat.nni_manager import (
    EXPERIMENT_MARK,
    dispatcher_exception,
    launch_path,
    link_tensorboard,
    load_experiment_config,
    nni_algorithms,
    quiet_nni,
    start_manager,
    write_launch_files,
)
from nni_gconv.compat.nni_trial import (
    experiment_folder,
    flat_parameters,
    next_parameters,
    report_final,
    report_intermediate,
    running_under_nni,
    trial_folder,
)
from nni_gconv.compat.nni_wrapper import (
    lighten_wrappers,
    parameter_order,
    restore_parameter_order,
)
from nni_gconv.compat.torch_edges import (
    export_onnx,
    export_program,
    flop_formulas,
    is_torch_file,
    load_exported_program,
    plain_attention,
    reason_of,
    run_onnx,
    save_exported_program,
)

__all__ = [
    "EXPERIMENT_MARK",
    "dispatcher_exception",
    "evaluator_input",
    "evaluator_optimizer",
    "experiment_folder",
    "export_onnx",
    "export_program",
    "flat_parameters",
    "flop_formulas",
    "has_scale_and_shift",
    "is_torch_file",
    "is_wrapped",
    "launch_path",
    "learn_optimizer",
    "let_lightning_stop",
    "lighten_wrappers",
    "link_tensorboard",
    "load_experiment_config",
    "load_exported_program",
    "next_parameters",
    "nni_algorithms",
    "parameter_order",
    "plain_attention",
    "quiet_nni",
    "reason_of",
    "register_pruning_types",
    "report_final",
    "report_intermediate",
    "restore_parameter_order",
    "run_onnx",
    "running_under_nni",
    "save_exported_program",
    "split_parameter_groups",
    "start_manager",
    "take_over_weights",
    "trial_folder",
    "write_launch_files",
]
