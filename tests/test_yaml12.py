import pytest

from nni_gconv.errors import ConfigError
from nni_gconv.yaml12 import parse_overrides


def test_overrides_are_yaml():
    assert parse_overrides(["a.b=0.5", "c=[1, 2]", "d=x=y", "e=", "f=null", "g=true"]) == {
        "a.b": 0.5,
        "c": [1, 2],
        "d": "x=y",
        "e": None,
        "f": None,
        "g": True,
    }
    for bad in ("a", "=1", "a..b=1", ".a=1", "a=[1"):
        with pytest.raises(ConfigError, match="-o"):
            parse_overrides([bad])
