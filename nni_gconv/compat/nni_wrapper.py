"""The forward of a module that NNI has wrapped, without what a parameter mask does not need.

NNI's wrapper sorts the arguments of each call by the module's signature, looks at every input and
output, multiplies every parameter with its mask or with 1, and empties the GPU's memory cache,
which makes the GPU wait: on ResNet-56 more than the convolutions of a small batch take.
"""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nni_gconv.compat.torch_edges import is_scripted

if TYPE_CHECKING:
    from torch import Tensor, nn


def lighten_wrappers(wrappers: Mapping[str, Any]) -> None:
    """Give wrappers a quick forward, equal in what it computes.

    Parameters
    ----------
    wrappers : mapping of str to nni.compression.base.wrapper.ModuleWrapper
        Wrapped now or later.
    """
    for wrapper in wrappers.values():
        # A method, not a closure, so that a copy of the model is served by its own wrappers.
        wrapper.forward = types.MethodType(_forward, wrapper)
        wrapper._whole = {}
        if wrapper.module._modules.get("_nni_wrapper") is wrapper:
            wrapper.module.forward = wrapper.forward


def trained_weight(module: nn.Module, name: str = "weight") -> Tensor | None:
    """Return a parameter of a layer; NNI's wrapper holds it while there is one."""
    wrapper = module._modules.get("_nni_wrapper")
    held = None if wrapper is None else wrapper._parameters.get(name)
    return module._parameters.get(name) if held is None else held


def parameter_order(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of each module's parameters in their order."""
    # What TorchScript runs keeps its parameters elsewhere, and is never wrapped.
    return {n: list(m._parameters) for n, m in model.named_modules() if not is_scripted(m)}


def restore_parameter_order(model: nn.Module, order: Mapping[str, list[str]]) -> None:
    """Put parameters back in order.

    NNI's wrapper takes masked ones out of a module and appends them when it lets go of it: a weight
    comes to stand behind its bias, and the state of an optimizer would go to the wrong ones.
    """
    for name, module in model.named_modules():
        if name not in order:
            continue
        known = [key for key in order.get(name, ()) if key in module._parameters]
        for key in [*known, *(key for key in module._parameters if key not in known)]:
            module._parameters[key] = module._parameters.pop(key)


def own_parameters(model: nn.Module) -> dict[tuple[str, str], nn.Parameter]:
    """Return the parameters of a model's modules by module and name, before they are wrapped.

    One that several modules share is left out: each of them is masked in its own way.
    """
    found = {
        (name, key): parameter
        for name, module in model.named_modules()
        if not is_scripted(module)
        for key, parameter in module._parameters.items()
        if parameter is not None
    }
    holders = Counter(id(parameter) for parameter in found.values())
    return {place: p for place, p in found.items() if holders[id(p)] == 1}


def unwrapped_state(model: nn.Module) -> dict[str, Tensor]:
    """Copy parameters and buffers, each under the name it has in the unwrapped model."""
    # Parameters come last: what a wrapper shows under their names is masked.
    held = dict(model.named_buffers(remove_duplicate=False))
    held |= dict(model.named_parameters(remove_duplicate=False))
    return {name.replace("_nni_wrapper.", ""): t.detach().clone() for name, t in held.items()}


def keep_parameters(
    wrappers: Mapping[str, Any], parameters: Mapping[tuple[str, str], nn.Parameter]
) -> None:
    """Let wrappers hold the model's own parameters, where NNI's hold copies.

    An optimizer that was made before goes on training the network then.
    """
    for name, wrapper in wrappers.items():
        for target in wrapper.pruning_target_spaces:
            own = parameters.get((name, target))
            if own is not None and wrapper._parameters.get(target) is not None:
                wrapper._parameters[target] = own


def restore_modules(wrappers: Mapping[str, Any]) -> None:
    """Give unwrapped modules back what NNI leaves changed.

    Those are parameters, of which NNI leaves copies; buffers, which a masked forward writes over;
    and the forward of their class: one set by hand tells a norm from others no more.
    """
    for wrapper in wrappers.values():
        own = vars(wrapper.module).get("forward")
        if getattr(own, "__func__", None) is type(wrapper.module).forward:
            del wrapper.module.forward
        for name in wrapper.pruning_target_spaces:
            if wrapper._buffers.get(name) is not None:
                wrapper.module._buffers[name] = wrapper._buffers[name]
            if name in wrapper.module._parameters and wrapper._parameters.get(name) is not None:
                wrapper.module._parameters[name] = wrapper._parameters[name]


def _forward(wrapper: Any, *args: Any, **kwargs: Any) -> Any:
    spaces = wrapper.pruning_target_spaces
    if (
        wrapper.quantization_target_spaces
        or wrapper.distillation_target_spaces
        or wrapper.fused_modules
        or not all(_is_tensor(wrapper, name) for name in spaces)
    ):
        return type(wrapper).forward(wrapper, *args, **kwargs)
    shown = wrapper.module._buffers
    for name, space in spaces.items():
        target = wrapper._parameters.get(name, wrapper._buffers.get(name))
        if target is None:
            continue  # a bias that the module has not
        mask = wrapper._buffers[space._mask_name]
        if space.apply_method == "mul" and (mask is None or _is_whole(wrapper, name, mask)):
            shown[name] = target
        else:
            shown[name] = wrapper._apply_mask_helper(target, space)
    return wrapper.module_forward(*args, **kwargs)


def _is_tensor(wrapper: Any, name: str) -> bool:
    """Tell a parameter or buffer, or one that the module could have but has not, from outputs."""
    return name in wrapper._parameters or name in wrapper._buffers


def _is_whole(wrapper: Any, name: str, mask: Tensor) -> bool:
    """Tell whether a mask is all ones; looked at again only after it was written to."""
    known = wrapper._whole.get(name)
    if known is None or known[0] is not mask or known[1] != mask._version:
        known = wrapper._whole[name] = (mask, mask._version, bool(mask.all()))
    return bool(known[2])
