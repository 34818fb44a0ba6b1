"""Coverage, exactness and speed of ModelSpeedup, beside NNI's ModelSpeedup and Torch-Pruning.

    python benchmarks/speedup.py --out docs/coverage.md                    # ours, every model
    python benchmarks/speedup.py --peers --models resnet18,vgg16_bn        # with the peers
    python benchmarks/speedup.py --one torchvision:resnet50                # one model, JSON

Every model runs in a process of its own. Half of the channels of every coupled set are masked
(L1 norm), batch norms are given random statistics, heads that start at zero random weights, and
masked and small network are compared here, in float64, independently of the library's own
verification. Seconds are wall time on the machine named in the output; the peers are timed in
the same process, after ours.

NNI's ModelSpeedup is given our masks and, since it does not start on today's torch, an fx graph.
Torch-Pruning prunes the same ratio by its own masks; what it removes is its own choice.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import subprocess
import sys
import time
import warnings
from pathlib import Path

ZOO = ["resnet20", "resnet20b", "resnet56", "resnet110", "preresnet164", "vgg16", "vgg19",
       "densenet40", "condensenet86"]  # fmt: skip
#: Image side where 224 would only cost time.
SMALL = {"vit_h_14": 224, "inception_v3": 299}
#: What has no CNN features to prune by channels.
SKIPPED = ("raft_", "r3d", "mc3", "r2plus1d", "s3d", "mvit", "swin3d")


def model_names() -> list[str]:
    from torchvision import models

    names = models.list_models(module=models)
    names += models.list_models(module=models.segmentation)
    names += models.list_models(module=models.detection)
    return [f"zoo:{n}" for n in ZOO] + [f"torchvision:{n}" for n in names]


def build(name: str):
    import torch
    from torch import nn
    from torchvision import models

    from nni_gconv.training.zoo import create_model

    torch.manual_seed(0)
    kind, _, bare = name.partition(":")
    if kind == "zoo":
        model, size = create_model(bare), (3, 32, 32)
    else:
        options = {"weights": None}
        if bare in models.list_models(module=models.detection) or bare in models.list_models(
            module=models.segmentation
        ):
            options["weights_backbone"] = None
        model = models.get_model(bare, **options)
        if bare in models.list_models(module=models.detection):
            model = model.backbone
        size = (3, *[SMALL.get(bare, 224)] * 2)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.7, 1.3),
                (module.weight, 0.7, 1.3),
                (module.bias, -0.1, 0.5),
            ):
                if tensor is not None:
                    tensor.data.uniform_(low, high, generator=generator)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            # Heads and branches that start at zero would make any two networks equal.
            if "layer_scale" in parameter_name:
                parameter.fill_(0.5)
            elif parameter.dim() > 1 and not bool(parameter.any()):
                parameter.normal_(std=0.05, generator=generator)
    return model.eval(), torch.randn(1, *size, generator=generator)


def leaves(output) -> list:
    import torch
    from torch.utils import _pytree as pytree

    return [t for t in pytree.tree_leaves(output) if isinstance(t, torch.Tensor)]


def difference(masked, small, dummy) -> float:
    """Largest difference of any output in float64, relative to the largest value."""
    import torch

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(dummy.shape, generator=generator, dtype=torch.float64)
    masked, small = masked.double().eval(), small.double().eval()
    with torch.no_grad():
        pairs = list(zip(leaves(masked(x)), leaves(small(x)), strict=True))
        if all(torch.equal(a, b) for (a, _), b in zip(pairs, leaves(masked(-x)), strict=True)):
            raise RuntimeError("the masked network's output does not depend on its input")
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-300)) for a, b in pairs)


def masked_copy(model, masks):
    import torch

    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, targets in masks.items():
            for target, mask in targets.items():
                tensor = getattr(model.get_submodule(name), target)
                if mask is not None and tensor is not None:
                    tensor.mul_(mask)
    return model


def ours(model, dummy) -> dict:
    import torch

    from nni_gconv import ModelSpeedup
    from nni_gconv.profiling import count
    from nni_gconv.pruning.nni_methods import NNIMethodPruner

    dense = count(model, dummy)
    kinds = {type(m).__name__ for m in model.modules()} & {"Conv2d", "Linear"}
    working = copy.deepcopy(model)
    pruner = NNIMethodPruner(
        working,
        [{"op_types": sorted(kinds), "sparse_ratio": 0.5}],
        method="L1NormPruner",
        dummy_input=dummy,
    )
    _, masks = pruner.compress()
    pruner.unwrap_model()
    reference = masked_copy(model, masks)
    timed = {}
    for verify in (True, False):
        small = copy.deepcopy(working)
        begun = time.perf_counter()
        speedup = ModelSpeedup(small, dummy, masks, verify=verify)
        speedup.speedup_model()
        timed["verified" if verify else "seconds"] = time.perf_counter() - begun
    counts = count(small, dummy)
    small_copy = copy.deepcopy(small)
    with torch.no_grad():
        error = difference(reference, small_copy, dummy)
    row = {
        "params": dense.params,
        "macs": dense.macs,
        "params_small": counts.params,
        "macs_small": counts.macs,
        "difference": error,
        "kept_zeros": len(speedup.report().notes),
        "skipped": len(pruner.skipped),
        **timed,
    }
    return {"row": row, "masks": masks}


def nni_speedup(model, dummy, masks) -> dict:
    import torch
    from nni.compression.speedup import ModelSpeedup

    working, reference = masked_copy(model, masks), masked_copy(model, masks)
    given = {m: {t: v for t, v in targets.items() if v is not None} for m, targets in masks.items()}
    begun = time.perf_counter()
    graph = torch.fx.symbolic_trace(working)
    small = ModelSpeedup(working, dummy, given, graph_module=graph).speedup_model()
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "difference": difference(reference, small, dummy)}


def torch_pruning(model, dummy) -> dict:
    import torch
    import torch_pruning as tp

    from nni_gconv.profiling import count

    working = copy.deepcopy(model)
    outputs = leaves(working(dummy))[0].shape[-1]
    ignored = [
        m for m in working.modules() if isinstance(m, torch.nn.Linear) and m.out_features == outputs
    ]
    begun = time.perf_counter()
    pruner = tp.pruner.MagnitudePruner(
        working, dummy, tp.importance.MagnitudeImportance(p=1), pruning_ratio=0.5,
        ignored_layers=ignored,
    )  # fmt: skip
    pruner.step()
    seconds = time.perf_counter() - begun
    working(dummy)
    counts = count(working, dummy)
    return {"seconds": seconds, "params_small": counts.params, "macs_small": counts.macs}


def one(name: str, peers: bool) -> dict:
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    model, dummy = build(name)
    result: dict = {"model": name}
    masks = None
    try:
        found = ours(model, dummy)
        result["ours"], masks = found["row"], found["masks"]
    except Exception as error:
        result["ours"] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}
    if not peers:
        return result
    for key, run in (
        ("torch_pruning", lambda: torch_pruning(model, dummy)),
        ("nni", lambda: nni_speedup(model, dummy, masks)),
    ):
        try:
            result[key] = run()
        except Exception as error:
            result[key] = {"error": f"{type(error).__name__}: {str(error)[:120]}"}
    return result


def table(rows: list[dict], peers: bool) -> str:
    head = ["model", "params", "MACs", "params left", "MACs left", "difference", "s", "s verified"]
    head += ["Torch-Pruning", "NNI (fx graph)"] if peers else []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        mine = row.get("ours", {})
        if "error" in mine:
            cells = [row["model"], mine["error"], *[""] * 6]
        else:
            cells = [
                row["model"], f"{mine['params'] / 1e6:.2f}M", f"{mine['macs'] / 1e6:.0f}M",
                f"{mine['params_small'] / mine['params']:.3f}",
                f"{mine['macs_small'] / mine['macs']:.3f}", f"{mine['difference']:.0e}",
                f"{mine['seconds']:.2f}", f"{mine['verified']:.2f}",
            ]  # fmt: skip
        if peers:
            cells += [peer_cell(row.get("torch_pruning")), peer_cell(row.get("nni"))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def peer_cell(found: dict | None) -> str:
    if not found:
        return ""
    if "error" in found:
        return "fails: " + found["error"].split(":")[0]
    equal = f", differs {found['difference']:.0e}" if found.get("difference", 0) > 1e-6 else ""
    return f"{found['seconds']:.2f} s{equal}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", help="comma-separated names; default: all")
    parser.add_argument("--peers", action="store_true", help="run NNI and Torch-Pruning too")
    parser.add_argument("--one", help="run one model in this process and print JSON")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one model")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.peers)))
        return
    names = model_names()
    if args.models:
        wanted = args.models.split(",")
        names = [n for n in names if n in wanted or n.partition(":")[2] in wanted]
    rows = []
    for name in names:
        if any(name.partition(":")[2].startswith(s) for s in SKIPPED):
            continue
        command = [sys.executable, __file__, "--one", name] + (["--peers"] if args.peers else [])
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=args.limit, check=True
            )
            rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
        except subprocess.SubprocessError as error:
            rows.append({"model": name, "ours": {"error": type(error).__name__}})
        print(table(rows[-1:], args.peers).splitlines()[-1], flush=True)
    machine = platform.processor() or platform.machine()
    text = f"{machine}, 2 threads.\n\n{table(rows, args.peers)}\n"
    if args.out:
        args.out.write_text(f"# Coverage of ModelSpeedup\n\n{__doc__}\n{text}")


if __name__ == "__main__":
    main()
