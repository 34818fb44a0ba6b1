"""What stands beside the package agrees with it: citation, changelog, CI, the site's pages."""

import re
from pathlib import Path

import yaml

import nni_gconv
from nni_gconv.callbacks import __doc__ as callbacks

ROOT = Path(__file__).parents[1]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_one_version_everywhere():
    assert yaml.safe_load(read("CITATION.cff"))["version"] == nni_gconv.__version__
    assert f"## [{nni_gconv.__version__}]" in read("CHANGELOG.md")


def test_the_workflow_and_pre_commit_run_what_ci_runs():
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))
    steps = workflow["jobs"]["checks"]["steps"]
    assert any(step.get("run") == ".ci/run" for step in steps)
    commands = [
        hook["entry"].replace(" --force-exclude", "").split()
        for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
        for hook in repo["hooks"]
    ]
    lines = [line.split() for line in read(".ci/run").splitlines()]
    assert [c for c in commands if not any(line[: len(c)] == c for line in lines)] == []


def test_the_sites_navigation_has_every_page_of_docs():
    named = set(re.findall(r": ([\w/]+\.md)$", read("mkdocs.yml"), re.MULTILINE))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert pages - named == set()


def test_callbacks_are_named_where_one_looks():
    assert "nni_gconv.callbacks.lightning.PruningCallback" in callbacks
