"""Measure the small networks that are kept in benchmarks/results/files on the 10 000 test images.

    python benchmarks/evaluate.py DATA

DATA holds the arrays that the `cifar10` loader reads. Each file is the compact file of one row of
benchmarks/results: `nni_gconv.load_compact` makes the network of it and of the architecture's name,
without dense weights, masks or training. The accuracy found is printed beside the recorded one.
They are equal where the CPU does the same arithmetic; the command fails where they differ by more
than 10 images.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from results import FILES, RESULTS, file_of, read
from rich.console import Console
from rich.progress import track
from rich.table import Table

from nni_gconv import load_compact
from nni_gconv.profiling import count
from nni_gconv.training import evaluate
from nni_gconv.training.data import DataSettings, load_data, make_loaders
from nni_gconv.training.zoo import create_model

_TOLERANCE = 10 / 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    args = parser.parse_args()
    names = [file.stem for file in sorted(RESULTS.glob("*.json"))]
    rows = [(name, key, row) for name in names for key, row in read(name).items()]
    kept = [(*row, file) for row in rows if (file := FILES / file_of(*row[:2])).is_file()]
    table = Table("network", "row", "parameters", "MACs", "recorded %", "found %")
    differing = 0
    for name, key, row, file in track(kept, "evaluate", console=Console(stderr=True)):
        settings = DataSettings(**{**row["recipe"]["data"], "root": str(args.data.absolute())})
        test = make_loaders(load_data(settings), settings, seed=0, device="cpu").test
        network = load_compact(file, partial(create_model, row["recipe"]["model"]["name"]))
        counts = count(network, next(iter(test))[0][:1])
        tuned = row["recipe"]["finetune"]
        found = evaluate(
            network, test, device="cpu", amp=tuned["amp"], channels_last=tuned["channels_last"]
        ).accuracy
        differing += abs(found - row["accuracy"]) > _TOLERANCE
        numbers = (f"{counts.params:,}", f"{counts.macs:,}", f"{100 * row['accuracy']:.2f}")
        table.add_row(name, key, *numbers, f"{100 * found:.2f}")
    Console().print(table)
    sys.exit(1 if differing or not kept else 0)


if __name__ == "__main__":
    main()
