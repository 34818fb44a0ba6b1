"""The picture of what each layer of some networks has become: widths and groups."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nni_gconv.display import COLOURS, picture, picture_path
from nni_gconv.errors import ConfigError
from nni_gconv.report.layers import LayerSize, Network

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST = len(COLOURS)
_DENSE = "0.85"


def plot_layers(networks: Sequence[Network], path: str | Path, *, title: str | None = None) -> Path:
    """Draw the outputs of each convolution and linear layer, dense and small, and its groups.

    Parameters
    ----------
    networks : sequence of Network
        One to six, of one architecture.
    path : str or Path
        ``.png``, ``.svg`` or ``.pdf``; replaced in one step, its folder is made.
    title : str, optional
        Heading of the picture.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ConfigError
        No network or too many, or an unknown format.

    Examples
    --------
    >>> plot_layers([read_network("runs/a"), read_network("runs/b")], "ab.png")  # doctest: +SKIP
    PosixPath('ab.png')
    """
    path = picture_path(path)
    if not 1 <= len(networks) <= _MOST:
        raise ConfigError(f"layers of {len(networks)} networks: from 1 to {_MOST} can be drawn")
    names = [
        name
        for name in dict.fromkeys(name for network in networks for name in network.layers)
        if any(_outputs(network.layers, name) is not None for network in networks)
    ]
    if not names:
        raise ConfigError("nothing to draw: no convolution and no linear layer")
    height = 1.4 + len(names) * max(0.2, 0.13 * len(networks) + 0.08)
    with picture(path, 9.0, height) as figure:
        beside_dense = all(network.dense for network in networks)
        ratios = (2.2, 1) if beside_dense else (1,)
        panels = figure.subplots(
            1, len(ratios), sharey=True, width_ratios=ratios, squeeze=False
        )[0]  # fmt: skip
        if beside_dense:
            _draw_costs(panels[1], names, networks)
        widths = panels[0]
        _draw_widths(widths, names, networks)
        widths.set_yticks(range(len(names)), names, fontsize="x-small")
        widths.set_ylim(len(names) - 0.4, -0.6)
        for axes in panels:
            axes.grid(visible=True, axis="x", color="0.9")
            axes.set_axisbelow(True)
            axes.tick_params(labelsize="x-small")
            axes.spines[["top", "right"]].set_visible(False)
        handles, labels = widths.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize="small"
        )
        if title:
            figure.suptitle(title)
    return path


def _outputs(layers: dict[str, LayerSize], name: str) -> int | None:
    return layers[name].outputs if name in layers else None


def _draw_widths(axes: Axes, names: Sequence[str], networks: Sequence[Network]) -> None:
    """Draw a bar for each network in front of a broad one for the dense one."""
    dense = next((network.dense for network in networks if network.dense), {})
    before = [_outputs(dense, name) or 0 for name in names]
    if any(before):
        axes.barh(range(len(names)), before, height=0.86, color=_DENSE, label="dense")
    height = 0.74 / len(networks)
    for i, network in enumerate(networks):
        places = [row - 0.37 + (i + 0.5) * height for row in range(len(names))]
        after = [_outputs(network.layers, name) or 0 for name in names]
        axes.barh(places, after, height=0.9 * height, color=COLOURS[i], label=network.label)
        for name, place, width in zip(names, places, after, strict=True):
            layer = network.layers.get(name)
            if layer is not None and layer.groups > 1:
                axes.annotate(
                    f"{layer.groups} groups", (width, place), xytext=(2, 0),
                    textcoords="offset points", va="center", fontsize="xx-small",
                )  # fmt: skip
    axes.set_xlabel("outputs (channels or features)", fontsize="small")


def _draw_costs(axes: Axes, names: Sequence[str], networks: Sequence[Network]) -> None:
    """Draw what is left of each layer's MACs; where they are not known, its parameters."""
    by = "macs" if all(network.macs is not None for network in networks) else "params"
    height = 0.74 / len(networks)
    for i, network in enumerate(networks):
        values = []
        for name in names:
            layer, before = network.layers.get(name), network.dense.get(name)
            now = getattr(layer, by) if layer is not None else 0
            base = getattr(before, by) if before is not None else 0
            values.append(now / base if base else 0.0)
        places = [row - 0.37 + (i + 0.5) * height for row in range(len(names))]
        axes.barh(places, values, height=0.9 * height, color=COLOURS[i])
    what = "MACs" if by == "macs" else "parameters"
    axes.set_xlabel(f"{what} (small / dense)", fontsize="small")
    axes.set_xlim(0, None)
