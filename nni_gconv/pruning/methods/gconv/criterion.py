"""What says how good a partition is: a score of each kernel, or the layer's output error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from nni_gconv.errors import ConfigError, unknown_name

CRITERIA = ("l2", "l1", "taylor", "error")


def _checked(value: Any) -> Any:
    """Accept a word, or scores of one's own by layer."""
    if not isinstance(value, Mapping) and value not in CRITERIA:
        raise ConfigError(unknown_name("criterion", value, CRITERIA, "criterion"))
    return value


Criterion = Annotated[Any, BeforeValidator(_checked)]


def static_criterion(criterion: str | Mapping[str, Any]) -> str | Mapping[str, Any]:
    """Return the criterion, or the kernel scores that stand for it where it has none yet."""
    return "l2" if criterion in ("taylor", "error") else criterion
