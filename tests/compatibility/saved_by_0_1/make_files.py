"""How the files beside this were made, with nni_gconv 0.1.0: they must load for ever.

Run with that version, in this folder: ``python make_files.py``.
"""

import torch
from nets import Residual, dummy
from safetensors.torch import save_file

from nni_gconv import FPGMPruner, GroupConvPruner, ModelSpeedup, save_compact, search_groups

CONVS = [{"op_types": ["Conv2d"]}]


def made(name, masks_of):
    torch.manual_seed(0)
    model = Residual().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    masks = masks_of(model)
    torch.save({m: dict(t) for m, t in masks.items()}, f"{name}_masks.pt")
    small = ModelSpeedup(model, dummy(), masks).speedup_model()
    save_compact(small, f"{name}.safetensors")
    with torch.no_grad():
        return small(dummy())


def channels(model):
    pruner = FPGMPruner(model, CONVS, budget={"macs": 0.5}, dummy_input=dummy())
    _, masks = pruner.compress()
    pruner.unwrap_model()
    return masks


def groups(model):
    torch.nn.init.normal_(model.stem.weight)
    pruner = GroupConvPruner(
        model, [{"op_names_re": ["block.*conv"], "num_groups": 2}], dummy_input=dummy()
    )
    _, masks = pruner.compress()
    pruner.unwrap_model()
    return masks


def dead_block(model):
    ones = {
        module: {name: torch.ones_like(value) for name, value in layer.named_parameters()}
        for module, layer in model.named_modules()
        if isinstance(layer, torch.nn.Conv2d | torch.nn.BatchNorm2d)
    }
    for name in ("block1.conv1", "block1.norm1", "block1.conv2", "block1.norm2"):
        ones[name] = {target: torch.zeros_like(mask) for target, mask in ones[name].items()}
    return ones


if __name__ == "__main__":
    torch.set_num_threads(1)
    kinds = {"channels": channels, "groups": groups, "dead_block": dead_block}
    save_file({name: made(name, how) for name, how in kinds.items()}, "outputs.safetensors")
    torch.manual_seed(0)
    search_groups(Residual(), dummy(), CONVS, {"macs": 0.6}).save("group_config.json")
