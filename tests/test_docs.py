"""The Python in the documentation is what works: it parses, its names exist, and pages run."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from functools import partial
from pathlib import Path

import pytest
import short_nets
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from nni_gconv.groupconv.partition import joint, solve
from nni_gconv.training import zoo

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    """Every block of Python on a page, at the line numbers it has there."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return ["\n" * (text.count("\n", 0, m.start()) + 1) + m.group(1) for m in found]


def _model() -> dict[str, object]:
    return {"model": nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)),
            "dummy_input": torch.zeros(1, 3, 8, 8)}  # fmt: skip


#: Pages that run in seconds, with what their readers have already.
RUN = {
    "README.md": dict, "config_list.md": _model, "criteria.md": _model,
    "exactness.md": dict, "groups.md": dict,
    "latency.md": dict, "own_network.md": dict, "reload.md": dict, "training.md": dict,
}  # fmt: skip
SLOW = ("README.md", "groups.md", "exactness.md", "latency.md", "own_network.md", "reload.md")


#: What needs an extra -> the library it brings.
EXTRAS = {
    "nni_gconv.callbacks.lightning": "pytorch_lightning",
    "nni_gconv.callbacks.huggingface": "transformers",
}
#: Paths of the repository as pages write them.
PATHS = re.compile(r"`((?:nni_gconv|tests|benchmarks|configs|experiments|docs)/[\w./-]*)[` ]")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name)
def test_paths_that_are_named_exist(page):
    named = PATHS.findall(page.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_map_names_every_package():
    named = PATHS.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    entries = {
        f"nni_gconv/{path.name}{'/' if path.is_dir() else ''}"
        for path in (ROOT / "nni_gconv").iterdir()
        if not path.name.startswith(("_", ".")) and path.suffix in ("", ".py")
    }
    assert entries - set(named) == set()


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name)
def test_links_to_files_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_is_imported_exists(page):
    for code in blocks(page):
        for node in ast.walk(ast.parse(code, page.name)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("nni_gconv"):
                needed = EXTRAS.get(str(node.module))
                if needed and importlib.util.find_spec(needed) is None:
                    continue
                module = importlib.import_module(str(node.module))
                assert [a.name for a in node.names if not hasattr(module, a.name)] == []


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in SLOW else []) for n in RUN],
)
def test_a_page_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # As many layers as on the page, and fewer channels of each.
    for made, block, blocks_ in (
        ("resnet18", BasicBlock, [2, 2, 2, 2]),
        ("resnet50", Bottleneck, [3, 4, 6, 3]),
    ):
        narrow = partial(short_nets.narrow, block, blocks_, num_classes=1000)
        monkeypatch.setattr(torchvision.models, made, narrow)
    monkeypatch.setattr(zoo, "create_model", partial(zoo.create_model, width=0.5))
    for module in (joint, solve):  # how good groups are is not asked here
        monkeypatch.setattr(module, "default_sweeps", lambda *_: 40)
    page = next(page for page in PAGES if page.name == name)
    names = {"__name__": "__main__", **RUN[name]()}
    torch.manual_seed(0)
    code = blocks(page)
    assert code
    for block in code:
        exec(compile(block, str(page), "exec"), names)
    if name == "README.md":  # what its comments say
        convolutions = [m for m in names["model"].modules() if isinstance(m, nn.Conv2d)]
        assert [m.groups for m in convolutions].count(4) == 52
        assert names["speedup"].report().gathers == 15
