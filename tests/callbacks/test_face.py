"""What is said to those who look for a callback where none can be."""

import importlib

import pytest


def test_the_callback_says_where_it_is():
    with pytest.raises(ImportError, match=r"nni_gconv\.callbacks\.lightning or nni_gconv"):
        from nni_gconv.callbacks import PruningCallback  # noqa: F401
    assert not hasattr(importlib.import_module("nni_gconv.callbacks"), "another")
