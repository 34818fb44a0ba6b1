"""Group counts from `search_groups`, beside the paper's local search and equal counts everywhere.

    python benchmarks/group_search.py                               # random weights, two minutes
    python benchmarks/group_search.py --weights FOLDER              # and pretrained CIFAR ResNets
    python benchmarks/group_search.py --only recover --weights FOLDER --data FOLDER

Prints Markdown. `equal` gives every search exactly the parameters and MACs of "G groups wherever
they divide"; `budgets` shows what a budget of one measure does to the other; `recover` masks a
pretrained ResNet-20 by the counts found and fine-tunes it briefly (FOLDER of --weights holds
resnet20_cifar10.safetensors ..., that of --data train_x.npy and train_y.npy; the dense network
has seen the images that are held out here).
"""

from __future__ import annotations

import argparse
import copy
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from partition import machine, table
from torch import nn

from nni_gconv.groupconv.partition import l2, partition_many
from nni_gconv.groupconv.search import GroupTables, cost_tables, counts, score_tables, solve_tables
from nni_gconv.training.zoo import create_model

CONVS = [{"op_types": ["Conv2d"]}]
RANDOM = {"preresnet164": 32, "torchvision:resnet50": 224}
PRETRAINED = ("resnet20", "resnet56")
SEARCHES = {
    "max_cost": {"strategy": "max_cost"},
    "exact": {},
    "exact, absolute": {"score": "absolute"},
    "exact, geometric": {"score": "geometric"},
}


@cache
def networks(weights: Path | None) -> list[tuple[str, GroupTables, float]]:
    files = {n: weights / f"{n}_cifar10.safetensors" for n in PRETRAINED if weights}
    found = []
    for name in [*RANDOM, *files]:
        torch.manual_seed(0)
        model = create_model(name, weights=str(files[name]) if name in files else None)
        example = torch.zeros(1, 3, *2 * (RANDOM.get(name, 32),))
        start = time.perf_counter()
        tables = score_tables(cost_tables(model, example, CONVS), model)
        title = f"{name} ({'pretrained' if name in files else 'random weights'})"
        found.append((title, tables, time.perf_counter() - start))
    return found


def uniform(tables: GroupTables, groups: int) -> tuple[int, ...]:
    """The option of G groups for each layer that has it, else dense."""
    return tuple(t.choices.index(groups) if groups in t.choices else 0 for t in tables.layers)


def mean_share(tables: GroupTables, chosen: tuple[int, ...]) -> float:
    shares = [t.fraction(o) for t, o in zip(tables.layers, chosen, strict=True)]
    return float(np.mean(shares))


def ratios(tables: GroupTables, chosen: tuple[int, ...]) -> list[str]:
    found = counts(tables, chosen)
    return [f"{own / dense:.3f}" for own, dense in zip(found, tables.dense, strict=True)]


def equal(args: argparse.Namespace) -> None:
    rows = []
    for title, tables, seconds in networks(args.weights):
        options = sum(len(t.choices) for t in tables.layers)
        print(f"\n{title}: tables of {len(tables.layers)} layers, {options} partitions: "
              f"{seconds:.1f} s", flush=True)  # fmt: skip
        for groups in (2, 4, 8):
            everywhere = uniform(tables, groups)
            limit = counts(tables, everywhere)._asdict()
            cells = [title, groups, *ratios(tables, everywhere)]
            cells.append(f"{mean_share(tables, everywhere):.1%}")
            for name in ("max_cost", "exact"):
                start = time.perf_counter()
                found = solve_tables(tables, limit, **SEARCHES[name])
                spent = time.perf_counter() - start
                within = counts(tables, found.chosen)
                assert all(own <= most for own, most in zip(within, limit.values(), strict=True))
                cells += [f"{found.value:.1%}", f"{spent:.2f}"]
            cells.append(f"{found.bound - found.value:.1e}")
            rows.append(cells)
    header = ["network", "G", "params", "MACs", "equal counts", "max_cost", "s", "exact", "s",
              "bound - exact"]  # fmt: skip
    table(
        "Retained score (mean of layers) at the parameters and MACs of equal counts", header, rows
    )


def budgets(args: argparse.Namespace) -> None:
    rows = []
    for title, tables, _ in networks(args.weights):
        for limit in ({"params": 0.5}, {"macs": 0.5}, {"params": 0.5, "macs": 0.5}):
            for name in ("max_cost", "exact", "exact, geometric"):
                found = solve_tables(tables, limit, **SEARCHES[name])
                grouped = [o for o in found.chosen if o]
                rows.append([
                    title, " and ".join(limit), name, *ratios(tables, found.chosen),
                    f"{mean_share(tables, found.chosen):.1%}",
                    f"{len(grouped)} of {len(found.chosen)}",
                ])  # fmt: skip
    header = ["network", "0.5 of", "search", "params", "MACs", "retained", "layers grouped"]
    table("What one budget does to the other measure", header, rows)


def recover(args: argparse.Namespace) -> None:
    if args.weights is None or args.data is None:
        print("\nrecover: left out, it needs --weights and --data")
        return
    x, y = images(args.data)
    train, held_out = (x[: args.images], y[: args.images]), (x[-args.tests :], y[-args.tests :])
    model = create_model("resnet20", weights=str(args.weights / "resnet20_cifar10.safetensors"))
    tables = score_tables(cost_tables(model, torch.zeros(1, 3, 32, 32), CONVS), model)
    rows = [["dense", "", "1.000", "1.000", "100.0%", f"{accuracy(model, *held_out):.1%}", "", ""]]
    for groups in args.groups:
        everywhere = uniform(tables, groups)
        limit = counts(tables, everywhere)._asdict()
        found = {"equal counts": everywhere}
        for name, options in SEARCHES.items():
            found[name] = solve_tables(tables, limit, **options).chosen
        for name, chosen in found.items():
            after = []
            for seed in args.seeds:
                masked, masks = mask(model, tables, chosen)
                before = accuracy(masked, *held_out)
                fine_tune(masked, masks, *train, args.epochs, seed)
                after.append(accuracy(masked, *held_out))
            rows.append([
                name, groups, *ratios(tables, chosen), f"{mean_share(tables, chosen):.1%}",
                f"{before:.1%}", f"{np.mean(after):.1%}", f"{np.ptp(after):.1%}",
            ])  # fmt: skip
            print(rows[-1], flush=True)
    header = ["search", "G", "params", "MACs", "retained", "masked", "fine-tuned",
              "range"]  # fmt: skip
    title = (f"ResNet-20, CIFAR-10: accuracy on {args.tests} images held out, after {args.epochs} "
             f"epochs on {args.images} others; {len(args.seeds)} runs")  # fmt: skip
    table(title, header, rows)


def images(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Training images: what is compared here is chosen by, so the test images stay out of it."""
    x = torch.from_numpy(np.load(folder / "train_x.npy")).permute(0, 3, 1, 2)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    labels = torch.from_numpy(np.load(folder / "train_y.npy")).long()
    return (x.float() / 255 - mean) / std, labels


@torch.no_grad()
def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    model.eval()
    right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(250), y.split(250),
                                                                      strict=True))  # fmt: skip
    return right / len(y)


def mask(model: nn.Module, tables: GroupTables, chosen: tuple[int, ...]):
    """A copy with everything outside the groups zero, and the masks."""
    masked, masks = copy.deepcopy(model), {}
    layers = [masked.get_submodule(t.name) for t in tables.layers]
    sizes = [t.choices[o] for t, o in zip(tables.layers, chosen, strict=True)]
    parts = partition_many([l2(layer.weight) for layer in layers], sizes)
    for layer, part in zip(layers, parts, strict=True):
        masks[layer.weight] = torch.from_numpy(part.mask()).float()[:, :, None, None]
        layer.weight.data.mul_(masks[layer.weight])
    return masked, masks


def fine_tune(
    model: nn.Module, masks, x: torch.Tensor, y: torch.Tensor, epochs: int, seed: int
) -> None:
    torch.manual_seed(seed)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9, weight_decay=5e-4)
    steps = epochs * (len(x) // 128)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(128)[: len(x) // 128]:
            flip = torch.rand(len(batch), 1, 1, 1) < 0.5
            inputs = torch.where(flip, x[batch].flip(3), x[batch])
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), y[batch]).backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for weight, kept in masks.items():
                    weight.mul_(kept)


TABLES = {"equal": equal, "budgets": budgets, "recover": recover}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=TABLES, nargs="+", default=list(TABLES))
    parser.add_argument("--weights", type=Path, help="folder of pretrained CIFAR ResNets")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10 arrays")
    parser.add_argument("--images", type=int, default=2560, help="training images of `recover`")
    parser.add_argument("--tests", type=int, default=2000, help="images held out in `recover`")
    parser.add_argument("--groups", type=int, nargs="+", default=[2, 4], help="G of `recover`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="runs of `recover`")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of `recover`")
    args = parser.parse_args()
    print(machine())
    for name in args.only:
        TABLES[name](args)


if __name__ == "__main__":
    main()
