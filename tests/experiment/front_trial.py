"""A trial of a second whose layers a, b and c forgive differently."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

with contextlib.suppress(ImportError):  # where another python runs it, NNI is as it is
    import light_nni  # noqa: F401
import nni

parameters = nni.get_next_parameter()
epochs = round(parameters.pop("finetune.epochs", 3))
lost = {"a": 0.2, "b": 0.02, "c": 0.01}
score = 0.95 - sum(lost[name] * (parameters[name] - 1) for name in lost)
if (Path(os.environ["NNI_OUTPUT_DIR"]).parents[3] / "fail").exists():
    sys.exit("told to fail")
time.sleep(float(os.environ.get("TRIAL_SECONDS", "0.3")))
for epoch in range(epochs):
    nni.report_intermediate_result({"default": score * (epoch + 1) / epochs, "loss": 1.0})
cost = 1 - sum(0.15 * (parameters[name] - 1) for name in lost)
(Path(os.environ["NNI_OUTPUT_DIR"]) / "given.json").write_text(json.dumps(parameters))
nni.report_final_result({"default": score, "accuracy": score, "macs_ratio": cost})
