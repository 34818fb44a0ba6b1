"""Time and memory of a second-order choice and of reconstruction, without the forward passes.

    python benchmarks/calibration.py --out docs/calibration.md
    python benchmarks/calibration.py --depths --out docs/calibration.md

A ResNet-50 with random weights loses half of its MACs by 1,024 images of 224 pixels: smooth random
fields, since what counts here is the size of things. Seconds are CPU time of the process and, of
choice and reconstruction together, those of the clock: without forward passes, which a GPU takes
over. Memory is the peak of the process, images included. `--depths` does the same for CIFAR ResNets
of growing depth. Masks and figures are kept in the folder `--keep` as they come; what is there is
not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pages import fill

DEPTHS = (20, 56, 110, 164)
BEGIN, END = "<!-- {}: written by benchmarks/calibration.py -->", "<!-- end of {} -->"


def now() -> Any:
    """CPU seconds of the process, and those of the clock."""
    import numpy as np

    return np.array([time.process_time(), time.perf_counter()])


class Forward:
    """Seconds of forward passes: those of replays, of whole networks and of traces."""

    def __init__(self) -> None:
        self.seconds = 0 * now()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Count what a block of code runs."""
        from nni_gconv.graph.replay import Run
        from nni_gconv.pruning.calibration import moments
        from nni_gconv.pruning.reconstruction import checked_refit

        whole = Run.go

        def go(run: Any, at: Any = None, **more: Any) -> Any:
            inside = 0 * now()

            def visit(work: Callable[..., None]) -> Callable[..., None]:
                def timed(*args: Any) -> None:
                    nonlocal inside
                    begun = now()
                    work(*args)
                    inside += now() - begun

                return timed

            begun = now()
            found = whole(run, {n: visit(w) for n, w in (at or {}).items()}, **more)
            self.seconds += now() - begun - inside
            return found

        Run.go = go  # type: ignore[method-assign]
        names = [(moments, "trace"), (checked_refit, "trace")]
        names += [(checked_refit, "outputs_of"), (checked_refit, "recalibrate_bn")]
        before = [getattr(*name) for name in names]
        for (place, name), function in zip(names, before, strict=True):
            setattr(place, name, self._timed(function))
        yield
        Run.go = whole  # type: ignore[method-assign]
        for (place, name), function in zip(names, before, strict=True):
            setattr(place, name, function)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **more: Any) -> Any:
            begun = now()
            found = function(*args, **more)
            self.seconds += now() - begun
            return found

        return timed


def smooth_images(count: int, size: int) -> Any:
    """Random fields whose pixels are like their neighbours, as in pictures."""
    import torch

    torch.manual_seed(0)
    coarse = torch.randn(count, 3, size // 8, size // 8)
    fine = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return fine + 0.2 * torch.randn(1, 3, size, size)


def child(name: str, images: int, size: int, threads: int, keep: Path) -> None:
    """Choose masks of one network, or reconstruct it with those that are kept; write figures."""
    import torch
    from safetensors.torch import load_file, save_file

    from nni_gconv import SecondOrderPruner, recalibrate_bn, reconstruct
    from nni_gconv.pruning import Calibration
    from nni_gconv.training.zoo import create_model

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if name.startswith("depth"):
        model = create_model("resnet", depth=int(name[5:]), shortcut="B").eval()
    else:
        import torchvision

        model = getattr(torchvision.models, name)().eval()
    x = smooth_images(images, size)
    recalibrate_bn(model, x[:32].split(32))  # random weights: else their outputs grow or die out
    calibration = Calibration(x, images=images, progress=False)
    x = calibration.inputs  # held once, as of a loader's user
    forward, masks_at = Forward(), keep / "masks.safetensors"

    def part(what: str, work: Callable[[], Any]) -> Any:
        begun = now()
        with forward.watched():
            done = work()
        own = now() - begun - forward.seconds
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        found = {
            what: own[0],
            f"{what}, clock": own[1],
            f"{what}, forward": forward.seconds[0],
            f"{what}, peak": peak,
        }
        (keep / f"{what}.json").write_text(json.dumps(found), encoding="utf-8")
        return done

    if not masks_at.is_file():
        pruner = SecondOrderPruner(
            model,
            [{"op_types": ["Conv2d"]}],
            budget={"macs": 0.5},
            dummy_input=x[:1],
            calibration=calibration,
        )
        _, found = part("choice", pruner.compress)
        flat = {f"{m} {t}": k for m, of in found.items() for t, k in of.items() if k is not None}
        save_file({name: mask.contiguous() for name, mask in flat.items()}, masks_at)
        return
    masks: dict[str, dict[str, Any]] = {}
    for key, mask in load_file(masks_at).items():
        module, target = key.split(" ")
        masks.setdefault(module, {})[target] = mask
    part("reconstruction", lambda: reconstruct(model, masks, calibration))


def run(name: str, images: int, size: int, threads: int, keep: Path) -> dict[str, float]:
    """Run a child of its own for each part, for its memory."""
    folder = keep / f"{name}-{images}-{size}-{threads}"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--child", name, "--images", str(images)]
    command += ["--size", str(size), "--threads", str(threads), "--keep", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    found: dict[str, float] = {}
    for part in ("choice", "reconstruction"):
        figures = folder / f"{part}.json"
        if not figures.is_file():
            if part == "choice":
                (folder / "masks.safetensors").unlink(missing_ok=True)
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=environment
            )
            if done.returncode:
                raise SystemExit(done.stderr)
        found |= json.loads(figures.read_text(encoding="utf-8"))
    return found


def table(rows: dict[str, dict[str, float]]) -> str:
    """Write rows as Markdown."""
    lines = [
        "| network | choice | reconstruction | together | on the clock | forward | peak, GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        passes = row["choice, forward"] + row["reconstruction, forward"]
        own = row["choice"] + row["reconstruction"]
        clock = row["choice, clock"] + row["reconstruction, clock"]
        numbers = f"{row['choice']:.1f} | {row['reconstruction']:.1f} | {own:.1f} | {clock:.1f}"
        peak = max(row["choice, peak"], row["reconstruction, peak"])
        lines.append(f"| {name} | {numbers} | {passes:.0f} | {peak:.2f} |")
    return "\n".join(lines)


def replace_table(page: Path, which: str, text: str) -> None:
    """Put a table between its two comments."""
    fill(page, BEGIN.format(which), END.format(which), f"\n\n{text}\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["resnet50"])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depths", action="store_true", help="CIFAR ResNets instead")
    parser.add_argument("--out", type=Path, help="Markdown page whose table is replaced")
    parser.add_argument("--keep", type=Path, default=Path("calibration-runs"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        child(args.child, args.images, args.size, args.threads, args.keep)
        return
    rows = {}
    size, names = (
        args.size,
        {f"{name}, {args.images} images of {args.size}": name for name in args.models},
    )
    if args.depths:
        size, names = 32, {f"ResNet-{d}, {args.images} images of 32": f"depth{d}" for d in DEPTHS}
    for shown, name in names.items():
        rows[shown] = run(name, args.images, size, args.threads, args.keep)
        print(shown, json.dumps({k: round(v, 3) for k, v in rows[shown].items()}), flush=True)
    said = f"CPU seconds on {platform.machine()}, {args.threads} threads.\n\n{table(rows)}"
    print(said)
    if args.out is not None:
        replace_table(args.out, "depths" if args.depths else "sizes", said)


if __name__ == "__main__":
    main()
