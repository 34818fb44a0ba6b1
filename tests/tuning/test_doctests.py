import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name", ["front", "options", "pareto", "propose", "records", "surrogate", "tables"]
)
def test_examples(name):
    module = importlib.import_module(f"nni_gconv.tuning.{name}")
    found = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 0
    assert found.failed == 0
