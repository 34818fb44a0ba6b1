"""TAB behind a command that takes a network."""

import os
import shutil
import subprocess
import sys

import pytest

from nni_gconv.cli.completion import OURS, complete_model, declared
from nni_gconv.training.zoo import list_models


def test_every_network_of_ours_is_offered():
    assert sorted(OURS) == list_models()


def test_those_of_other_packages_are_read_off_their_source():
    import torchvision

    assert sorted(declared("torchvision")) == sorted(torchvision.models.list_models())
    assert declared("no_such_package") == []
    timm = pytest.importorskip("timm")
    assert sorted(declared("timm")) == sorted(timm.list_models())


def test_what_is_typed_begins_the_names():
    assert {"resnet56", "vgg16", "torchvision:", "timm:"} <= set(complete_model(""))
    assert complete_model("resnet2") == ["resnet20", "resnet20b"]
    assert complete_model("torchvision:resnet1") == [
        "torchvision:resnet101", "torchvision:resnet152", "torchvision:resnet18",
    ]  # fmt: skip
    assert "torchvision:vgg16" in complete_model("torchv")
    assert complete_model("experiment.yml") == complete_model("my_net:Net") == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
@pytest.mark.parametrize(
    ("words", "at", "offered"),
    [
        ("nni-gconv doctor resnet56", 2, ["resnet56", "resnet56b"]),
        # bash parts words at colons, and replaces what stands behind the last.
        ("nni-gconv doctor torchvision : resnet18", 4, ["resnet18"]),
        ("nni-gconv profile torchvision : resnet10", 4, ["resnet101"]),
        ("nni-gconv doctor my_net : N", 4, []),
        ("nni-gconv doct", 1, ["doctor"]),
    ],
)
def test_bash_offers_them(tmp_path, words, at, offered):
    script = tmp_path / "nni-gconv"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} -m nni_gconv\n")
    script.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    source = subprocess.run(
        ["nni-gconv"], env={**env, "_NNI_GCONV_COMPLETE": "source_bash"},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    (name,) = [line.partition("()")[0] for line in source.splitlines() if line.endswith("() {")]
    call = f"{source}\nCOMP_WORDS=({words})\nCOMP_CWORD={at}\n{name} nni-gconv\n"
    call += 'echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", call], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == offered, done.stderr


def test_completing_imports_no_torch():
    code = "import sys, nni_gconv.cli.completion as c; c.complete_model('timm:res')"
    done = f"{code}; print({{'torch', 'timm', 'torchvision'}} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", done], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"
