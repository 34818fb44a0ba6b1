"""Time and memory of ModelSpeedup against depth: CIFAR ResNets from 20 to 1202 layers.

    python benchmarks/speedup_depth.py --out docs/coverage.md

Half of the channels of every set are masked at random. Seconds are CPU time with one thread,
without and with verification; memory is the peak of a process that does only this, of which
Python, torch and the first trace take most.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

from pages import fill

DEPTHS = (20, 56, 110, 302, 602, 1202)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(depth: int, verify: bool) -> None:
    """Speed one network up and print a line of JSON."""
    import torch
    from speedup_models import half_masks

    from nni_gconv import ModelSpeedup
    from nni_gconv.training.zoo import create_model

    torch.set_num_threads(1)
    torch.manual_seed(0)
    warm = torch.nn.Conv2d(3, 4, 3)  # what the first trace imports is no matter of depth
    ModelSpeedup(warm, torch.zeros(1, 3, 8, 8), {}, verify=verify).speedup_model()
    model, dummy = create_model("resnet", depth=depth).eval(), torch.randn(1, 3, 32, 32)
    masks = half_masks(model, dummy)
    begun = time.process_time()
    ModelSpeedup(model, dummy, masks, verify=verify).speedup_model()
    print(json.dumps({"seconds": time.process_time() - begun, "peak": peak_mib()}))


def run(depth: int, verify: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", str(depth)] + ["--verify"] * verify
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", default=",".join(map(str, DEPTHS)))
    parser.add_argument("--out", type=Path, help="Markdown file whose table is replaced")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--verify", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        child(args.child, args.verify)
        return
    lines = ["| layers | s | s per 100 layers | s verified | peak MiB | peak MiB verified |",
             "|" + "---|" * 6]  # fmt: skip
    for depth in map(int, args.depths.split(",")):
        plain, verified = run(depth, False), run(depth, True)
        lines.append(
            f"| {depth} | {plain['seconds']:.2f} | {plain['seconds'] / depth * 100:.2f} | "
            f"{verified['seconds']:.2f} | {plain['peak']:.0f} | {verified['peak']:.0f} |"
        )
        print(lines[-1], flush=True)
    if args.out:
        begin, end = "<!-- depth -->\n", "<!-- end -->"
        text = f"{platform.machine()}, one thread.\n\n" + "\n".join(lines)
        fill(args.out, begin, end, f"{text}\n")


if __name__ == "__main__":
    main()
