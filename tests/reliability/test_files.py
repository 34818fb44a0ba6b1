"""Full disks, links, left-over halves, folders that are free, equal bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import yaml
from damage import RECIPE, numbers, sums, trial
from tiny_recipes import tiny

from nni_gconv.cli import main
from nni_gconv.errors import CheckpointError, ConfigError
from nni_gconv.files import atomic_path, links_in, sweep, write_text

root = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0, reason="mounts a file system"
)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine mounts nothing")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def command_line(capsys, recipe, folder) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["run", str(recipe), "--output", str(folder), "--quiet"])
    return ended.value.code or 0, capsys.readouterr().err


@pytest.mark.slow
@root
def test_a_full_disk_is_one_line_and_the_last_good_state_stays(small_disk, tmp_path, capsys):
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    (small_disk / "ballast").write_bytes(bytes(850_000))
    code, words = command_line(capsys, recipe, small_disk / "trial")
    assert code == 2
    assert words.count("\n") == 1
    assert "No space left on device" in words
    assert "run it again" in words
    (small_disk / "ballast").unlink()
    code, words = command_line(capsys, recipe, small_disk / "trial")
    assert code == 0, words
    trial(tmp_path / "whole")
    assert sums(small_disk / "trial") == sums(tmp_path / "whole")
    assert numbers(small_disk / "trial") == numbers(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["file", "long"])
def test_an_output_that_cannot_be_is_one_line(tmp_path, capsys, kind):
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "file").write_text("")
    code, words = command_line(capsys, recipe, tmp_path / ("file" if kind == "file" else "x" * 300))
    assert code == 2
    assert words.count("\n") == 1


def test_what_stood_there_survives_a_failed_write(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_hidden_error_of_the_system_comes_out(tmp_path):
    with pytest.raises(OSError, match="No space left"), atomic_path(tmp_path / "a.txt"):
        raise ValueError("I/O error: No space left on device (os error 28)")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_bytes_reach_the_disk_before_their_name(tmp_path, monkeypatch):
    seen, real = [], os.fsync

    def fsync(number: int) -> None:
        name = Path(f"/proc/self/fd/{number}").readlink().name
        seen.append((name, (tmp_path / "a.txt").exists()))
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "a.txt", "x")
    assert seen == [(f".part-{os.getpid()}-a.txt", False), (tmp_path.name, True)]


def test_no_link_is_followed(tmp_path):
    target = tmp_path / "precious"
    target.write_text("precious")
    (tmp_path / "link").symlink_to(target)
    write_text(tmp_path / "link", "new")
    assert target.read_text() == "precious"
    assert (tmp_path / "link").read_text() == "new"
    for name in (".lock", "metrics.jsonl", "tensorboard", "train"):
        folder = tmp_path / f"trial-{name}"
        folder.mkdir()
        (folder / name).symlink_to(target if name != "tensorboard" else tmp_path)
        assert links_in(folder) == [folder / name]
        with pytest.raises(ConfigError, match=f"{name} is a link"):
            trial(folder)
        assert target.read_text() == "precious"


def test_halves_of_killed_writers_are_swept(tmp_path):
    folder = tmp_path / "trial"
    (folder / "train").mkdir(parents=True)
    for name in (".part-77-stages.json", "train/.part-1-checkpoint.pt"):
        (folder / name).write_text("half")
    (folder / ".part-of-mine").write_text("kept")
    assert len(sweep(folder)) == 2
    assert (folder / ".part-of-mine").exists()


@pytest.mark.parametrize("name", ["../../x", "..", ".", "/x", "a/b", "a\\b", "C:x", " ", "x" * 300])
def test_a_name_leads_nowhere(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="name: "):
        trial(None, tiny(name=name))
    assert names(tmp_path) == []


@pytest.mark.slow
def test_a_corrected_recipe_simply_runs(tmp_path, capsys):
    recipe, folder = tmp_path / "recipe.yml", tmp_path / "out"
    recipe.write_text(yaml.safe_dump(tiny(model={"name": "resnet8", "options": {"widht": 0.25}})))
    code, words = command_line(capsys, recipe, folder)
    assert code == 2
    assert words.count("\n") == 1
    recipe.write_text(yaml.safe_dump(tiny()))
    code, words = command_line(capsys, recipe, folder)
    assert code == 0, words
    assert numbers(folder)


@pytest.mark.slow
def test_an_unfinished_run_of_another_recipe_is_put_aside(tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(RECIPE))
    done = processes.run("recipe_process.py", tmp_path / "recipe.json", tmp_path / "out", "train=3")
    assert done.code
    folder = tmp_path / "out"
    assert not (folder / "stages.json").exists()
    (folder / "train").mkdir(exist_ok=True)
    (folder / "train" / "checkpoint.pt").write_bytes(b"epochs of another recipe")
    changed = {**RECIPE, "seed": 5}
    trial(folder, changed)
    assert (folder / "earlier-1" / "train" / "checkpoint.pt").read_bytes().startswith(b"epochs")
    trial(tmp_path / "whole", changed)
    assert sums(folder) == sums(tmp_path / "whole")
    with pytest.raises(ConfigError, match="another recipe"):
        trial(folder, RECIPE)


@pytest.mark.slow
def test_equal_runs_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        trial(tmp_path / name)
    assert sums(tmp_path / "a") == sums(tmp_path / "b")


def test_a_shared_network_is_checked_too(tmp_path):
    recipe = tiny(train={"epochs": 0, "share": str(tmp_path / "shared")}, finetune=None)
    trial(tmp_path / "a", recipe)
    (file,) = (tmp_path / "shared").rglob("dense.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    for folder in ("a", "b"):
        with pytest.raises(CheckpointError, match=r"dense.safetensors is damaged"):
            trial(tmp_path / folder, recipe)


def test_onnx_that_is_not_installed_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(ConfigError, match="export to ONNX needs onnx"):
        trial(tmp_path / "out", tiny(export={"formats": ["onnx"]}))
    assert not (tmp_path / "out" / "stages.json").exists()
