"""The table of rules: what follows channels says, too, what it makes of constants."""

import torch

from nni_gconv.graph.rules import CHANNEL_RULES, CONSTANT_RULES
from nni_gconv.graph.rules.registry import channel_rule, constants_unknown, nothing_known


def one_sided():
    """Operators that have a rule for channels and say nothing of constants."""
    return sorted(set(CHANNEL_RULES) - set(CONSTANT_RULES))


def test_every_channel_rule_has_a_constant_rule_or_says_that_nothing_is_known():
    assert len(CHANNEL_RULES) > 100
    assert one_sided() == []


def test_a_new_rule_that_forgets_constants_is_found(monkeypatch):
    monkeypatch.setitem(CHANNEL_RULES, "conv9d", None)
    monkeypatch.delitem(CHANNEL_RULES, "conv9d")  # taken back when the test ends
    channel_rule("conv9d")(lambda walker, node: ())
    assert one_sided() == ["conv9d"]
    monkeypatch.setitem(CONSTANT_RULES, "conv9d", None)
    constants_unknown("conv9d")
    assert one_sided() == []
    assert CONSTANT_RULES["conv9d"](None, None) is None


def test_what_is_unknown_is_a_short_list():
    """Whoever adds to it has thought about it: most operators keep zeros zero."""
    unknown = {name for name, rule in CONSTANT_RULES.items() if rule is nothing_known}
    assert unknown == set(
        "_assert_async _assert_scalar _assert_tensor_metadata _log_softmax _softmax cumsum "
        "empty_like full_like layer_norm log_softmax new_empty new_full new_ones new_zeros "
        "ones_like rms_norm softmax sort topk".split()
    )


def test_rules_are_named_as_torch_names_its_operators():
    names = set(CHANNEL_RULES) | set(CONSTANT_RULES)
    assert {name for name in names if not hasattr(torch.ops.aten, name)} == {
        "getitem",
        "channel_norm",  # ours, see nni_gconv.graph.norms
        "standard_weight",
    }
