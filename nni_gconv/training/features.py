"""Feature distillation: maps inside a pruned network learn those of the dense one.

Paper: Romero et al., "FitNets: Hints for Thin Deep Nets", 2015, https://arxiv.org/abs/1412.6550. A
pruned network needs no regressor between the two: each of its channels is one of the dense
network's. With f a map of the network and t the same channels of the teacher's, the loss gets

    features * (1 - epochs / features_epochs) * mean over maps( |f - t|^2 / |t|^2 )

until the first factor is zero.
Maps are the outputs of blocks: modules that hold others. Where a network has few they are those of
its norms, or of its convolutions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_gconv.errors import ConfigError

#: Module -> its channels, and which of the teacher's they are.
CommonMaps = Mapping[str, tuple[Tensor, Tensor]]

_TOLERANCE = 1e-5
"""Of the largest value: so near is a channel of the small network to the same one of the masked."""
_VIEWS = 64
"""Random projections by which channels are told apart."""
_FEW = 4
"""A network of fewer blocks, such as a VGG's `features`, is compared behind its norms."""


class FeatureTeacher(nn.Module):
    """A network that teaches by its feature maps too.

    Parameters
    ----------
    network : nn.Module
        The dense one.
    common : mapping
        Its maps that the pruned network has, of :func:`common_maps`.

    Examples
    --------
    >>> channels = torch.arange(4)
    >>> teacher = FeatureTeacher(nn.Sequential(nn.Conv2d(3, 4, 1)), {"0": (channels, channels)})
    >>> sorted(teacher.common), tuple(teacher(torch.zeros(1, 3, 2, 2)).shape)
    (['0'], (1, 4, 2, 2))
    """

    def __init__(self, network: nn.Module, common: CommonMaps) -> None:
        super().__init__()
        self.network = network
        self.common = common
        self.share = 1.0

    def fade(self, epochs: float, over: float) -> None:
        """Let its feature maps count less: not at all after `over` epochs.

        Parameters
        ----------
        epochs : float
            How many the network has trained so far.
        over : float
            In how many what they count falls to zero.
        """
        self.share = max(0.0, 1.0 - epochs / over)

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's logits."""
        logits: Tensor = self.network(images)
        return logits


def common_maps(
    small: nn.Module, masked: nn.Module, images: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Find which channels inside a small network are which of the network that it was cut from.

    Both compute the same, so that they are found by their values, in float64, whatever became of
    their order; channels that are alike (two that are always zero) are left out.

    Parameters
    ----------
    small, masked : nn.Module
        What :class:`nni_gconv.ModelSpeedup` made, and the masked network it was made from.
    images : Tensor, shape (N, C, H, W)
        A few are enough.

    Returns
    -------
    dict of str to (Tensor, Tensor)
        Of every map: channels of `small`, and the channels of `masked` that they are.

    Raises
    ------
    ConfigError
        There is no such map.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    >>> common = common_maps(net, copy.deepcopy(net), torch.randn(2, 3, 4, 4))
    >>> {name: theirs.tolist() for name, (own, theirs) in common.items()}
    {'0': [0, 1, 2, 3], '2': [0, 1]}
    """
    known = dict(small.named_modules())
    names = [name for name in _blocks(masked) if name in known]
    ours, theirs = (_maps_in_double(model, names, images) for model in (small, masked))
    found: dict[str, tuple[Tensor, Tensor]] = {}
    seen: set[int] = set()
    for name, their in theirs.items():
        if name not in ours or id(their) in seen:  # the same map under another name
            continue
        seen.add(id(their))
        own, same = _alike(ours[name], their)
        if len(own):
            found[name] = own, same
    if not found:
        raise ConfigError("distill.features: no feature map is that of the masked network")
    return found


def feature_loss(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], common: CommonMaps
) -> Tensor:
    """Return the mean over the maps of ``|f - t|^2 / |t|^2``.

    Parameters
    ----------
    ours, theirs : mapping of str to Tensor, shape (N, C, H, W)
        Maps of the network and of its teacher.
    common : mapping
        Of :func:`common_maps`.

    Examples
    --------
    >>> maps, two = {"0": torch.ones(1, 3, 2, 2)}, torch.arange(2)
    >>> float(feature_loss({"0": torch.zeros(1, 2, 2, 2)}, maps, {"0": (two, two)}))
    1.0
    """
    losses = []
    for name, (own, same) in common.items():
        ours_here, theirs_here = _pick(ours[name], own), _pick(theirs[name], same)
        size = theirs_here.square().mean().clamp_min(torch.finfo(theirs_here.dtype).tiny)
        losses.append(F.mse_loss(ours_here, theirs_here) / size)
    return torch.stack(losses).mean()


@contextmanager
def recorded(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Keep what modules give while the model runs."""
    maps: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                maps[name] = output

        return keep

    handles = [model.get_submodule(name).register_forward_hook(keeper(name)) for name in names]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def _pick(found: Tensor, channels: Tensor) -> Tensor:
    found = found.float()  # bfloat16 is too coarse for differences
    if len(channels) == found.shape[1] and bool((channels.diff() == 1).all()):
        return found
    return found.index_select(1, channels.to(found.device))


def _blocks(model: nn.Module) -> list[str]:
    """Name the modules whose outputs are compared."""
    modules = [(name, module) for name, module in model.named_modules() if name]
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    kinds = (
        lambda module: any(True for _ in module.children()),
        lambda module: isinstance(module, norms),
        lambda module: isinstance(module, nn.modules.conv._ConvNd),
    )
    choices = [[name for name, module in modules if kind(module)] for kind in kinds]
    return next((names for names in choices if len(names) >= _FEW), max(choices, key=len))


def _maps_in_double(model: nn.Module, names: Iterable[str], images: Tensor) -> dict[str, Tensor]:
    model = copy.deepcopy(model).double().eval()
    with recorded(model, names) as maps, torch.no_grad():
        model(images.double())
    return {name: found for name, found in maps.items() if found.ndim == 4}


def _alike(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Pair the channels that are equal, each with the only one."""
    own, their = (x.transpose(0, 1).flatten(1) for x in (ours, theirs))
    none = torch.empty(0, dtype=torch.int64)
    if own.shape[1] != their.shape[1]:
        return none, none
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(own.shape[1], _VIEWS, generator=generator, dtype=own.dtype).to(own.device)
    views /= own.shape[1] ** 0.5
    seen, known = own @ views, their @ views
    apart = torch.cdist(seen, known, compute_mode="donot_use_mm_for_euclid_dist")
    near = apart <= _TOLERANCE * known.abs().max()
    near &= (near.sum(1, keepdim=True) == 1) & (near.sum(0, keepdim=True) == 1)
    own_index, their_index = near.nonzero(as_tuple=True)
    return own_index.cpu(), their_index.cpu()
