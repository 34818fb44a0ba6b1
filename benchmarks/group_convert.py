"""Whole networks converted to group convolutions: what is kept, gathers left, equality, latency.

    python benchmarks/group_convert.py                        # ResNet-18 and -50, four minutes
    python benchmarks/group_convert.py --models resnet101 --groups 2 --device cuda --batch 64

Prints Markdown. Every convolution that allows it gets G groups (`GroupConvPruner`); the masks are
converted by `ModelSpeedup`. "sharing" says which layers split their channels alike, "not folded"
is the same network with every permutation left as a gather. Latency is the ratio to the dense
network, run in turn with it: median and quartiles of the ratios of neighbouring runs. Weights are
random (``--weights DEFAULT``: torchvision's own), which changes what is retained but neither
gathers nor latency. ``retained`` is the mean share of kernel L2 norm inside the groups; one network
split at random keeps 1 / G.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
import torchvision
from partition import machine, table
from torch import nn

from nni_gconv import GroupConvPruner, ModelSpeedup
from nni_gconv.profiling import compare_latency, count

SHARING = ("blocks", "streams", "none")


def converted(dense: nn.Module, groups: int, sharing: str, dummy: torch.Tensor):
    """The pruner, the folded network and the unfolded one, reports and seconds."""
    model = copy.deepcopy(dense)
    start = time.perf_counter()
    pruner = GroupConvPruner(
        model, [{"op_types": ["Conv2d"], "num_groups": groups}], dummy_input=dummy, sharing=sharing
    )
    _, masks = pruner.compress()
    pruner.unwrap_model()
    split = time.perf_counter() - start
    unfolded = copy.deepcopy(model)
    start = time.perf_counter()
    folded = ModelSpeedup(model, dummy, masks)
    folded.speedup_model()
    convert = time.perf_counter() - start
    plain = ModelSpeedup(unfolded, dummy, masks, fold_permutations=False, verify=False)
    plain.speedup_model()
    return pruner, folded, plain, split, convert


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--groups", type=int, nargs="+", default=[4])
    parser.add_argument("--sharing", nargs="+", choices=SHARING, default=SHARING)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--weights", help="name of torchvision's weights; default: random")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="at least, for each network")
    args = parser.parse_args()
    torch.manual_seed(0)
    print(machine(), f"torch {torch.__version__}, device {args.device}", sep=", ")
    for name in args.models:
        dense = torchvision.models.get_model(name, weights=args.weights).eval().to(args.device)
        dummy = torch.zeros(1, 3, 224, 224, device=args.device)
        before = count(dense, dummy)
        for groups in args.groups:
            models: dict[str, nn.Module] = {"dense": dense}
            rows = []
            for sharing in args.sharing:
                pruner, folded, plain, split, convert = converted(dense, groups, sharing, dummy)
                kept = [p.fraction for p in pruner.partitions.values()]
                models[sharing] = folded.model.eval()
                if sharing == "none":
                    models["not folded"] = plain.model.eval()
                after, report = count(folded.model, dummy), folded.report()
                rows.append([
                    sharing, len(kept), f"{sum(kept) / len(kept):.4f}", report.gathers,
                    plain.report().gathers, f"{report.difference:.0e}",
                    f"{after.params / before.params:.3f}", f"{after.macs / before.macs:.3f}",
                    f"{split:.1f}", f"{convert:.1f}",
                ])  # fmt: skip
            table(
                f"{name}, G = {groups}",
                ["sharing", "layers", "retained", "gathers", "gathers not folded", "difference",
                 "params", "MACs", "split s", "convert s"],
                rows,
            )  # fmt: skip
            latency(args, name, groups, models)


def latency(args: argparse.Namespace, name: str, groups: int, models: dict[str, nn.Module]) -> None:
    """Print the time of each network over the dense one's."""
    rows = []
    for batch in args.batch:
        for last in (False, True):
            example = torch.zeros(batch, 3, 224, 224, device=args.device)
            found = compare_latency(
                models, example, batch_size=batch, threads=args.threads, min_runs=5,
                min_seconds=args.seconds, channels_last=last,
            )  # fmt: skip
            layout = "channels last" if last else "contiguous"
            dense = found.latencies["dense"].median_ms
            cells = [
                f"{found.ratios[m]:.2f} ({low:.2f}, {high:.2f})"
                for m, (low, high) in found.ratio_quartiles.items() if m != "dense"
            ]  # fmt: skip
            rows.append([batch, layout, f"{dense:.1f} ms", *cells])
    heads = [m for m in models if m != "dense"]
    table(f"{name}, G = {groups}: latency over dense", ["batch", "layout", "dense", *heads], rows)


if __name__ == "__main__":
    main()
