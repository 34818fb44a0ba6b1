"""The layers of a small network, beside those of the dense one, read from its file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from nni_gconv.errors import CheckpointError
from nni_gconv.files import output_file
from nni_gconv.report.sources import trial_file


@dataclass(frozen=True)
class LayerSize:
    """One layer of a network.

    Attributes
    ----------
    name, type : str
        Dotted name in the dense network, and class.
    inputs, outputs : int or None
        Channels or features; None for a layer that is neither convolution nor linear.
    groups : int
        1 where there are none.
    params : int
        Parameters.
    macs : int or None
        Multiply-accumulates for one sample; None where the file does not say.
    """

    name: str
    type: str
    inputs: int | None
    outputs: int | None
    groups: int
    params: int
    macs: int | None

    def widths(self) -> str:
        """Write inputs, outputs and groups.

        Examples
        --------
        >>> LayerSize("conv", "Conv2d", 16, 32, 4, 1152, None).widths()
        '16→32 g4'
        """
        if self.inputs is None or self.outputs is None:
            return ""
        return f"{self.inputs}→{self.outputs}" + (f" g{self.groups}" if self.groups > 1 else "")


@dataclass(frozen=True)
class Network:
    """A small network as its file describes it.

    Attributes
    ----------
    label : str
        What to call it in tables and pictures.
    file : Path
        Where it is kept.
    model : str
        Class of the network.
    layers, dense : dict of str to LayerSize
        Layers that cost something, by name in the model's order, of the small and of the dense
        network; the latter empty where the file does not say. Layers that went with their block
        are in both, with no outputs and no costs in the small one.
    blocks : tuple of str
        Residual blocks that went, all but what lies beside their branch.
    gathers : int
        Permutations of channels that are left.
    recipe : dict
        How it came about; may be empty.
    """

    label: str
    file: Path
    model: str
    layers: dict[str, LayerSize]
    dense: dict[str, LayerSize] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    gathers: int = 0
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def params(self) -> int:
        """Parameters of all layers."""
        return sum(layer.params for layer in self.layers.values())

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of all layers for one sample; None where the file does not say."""
        return total_macs(self.layers)


def total_macs(layers: Mapping[str, LayerSize]) -> int | None:
    """Add up multiply-accumulates; None where one is not known."""
    macs = [layer.macs for layer in layers.values()]
    return None if None in macs else sum(m for m in macs if m is not None)


def read_network(source: str | Path, label: str | None = None) -> Network:
    """Read the layers of a small network without its weights; nothing is built or executed.

    Parameters
    ----------
    source : str or Path
        A ``compact.safetensors``, the folder of a run, or ``EXPERIMENT/TRIAL``.
    label : str, optional
        What to call it; default: the source.

    Returns
    -------
    Network

    Raises
    ------
    ConfigError
        The source is none of these.
    CheckpointError
        The file is damaged or no small network of ours.

    Examples
    --------
    >>> read_network("runs/fpgm").layers["layer1.0.conv1"].widths()  # doctest: +SKIP
    '16→9'
    """
    file = trial_file(source)
    from nni_gconv.artefact import read_plan  # loads torch, which tables and plots do without

    found = read_plan(file)
    plan, sizes = found["plan"], found["layers"]
    try:
        layers = _parse(sizes["small"]) if sizes else _from_plan(plan)
        dense = _parse(sizes.get("dense", []))
        blocks = tuple(plan.get("blocks", {}))
        gathers = sum(len(sides) for sides in plan.get("gathers", {}).values())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file}: its list of layers cannot be read: {error!r}") from None
    gone = {
        name: _gone(x) for name, x in dense.items() if went(name, blocks) and name not in layers
    }
    found_layers = {**layers, **gone}
    layers = {name: found_layers[name] for name in {**dense, **layers} if name in found_layers}
    return Network(
        label=label or str(source),
        file=file,
        model=str(plan.get("model", "")),
        layers=layers,
        dense=dense,
        blocks=blocks,
        gathers=gathers,
        recipe=found["recipe"] or {},
    )


def went(name: str, blocks: Sequence[str]) -> bool:
    """Tell whether a layer is inside one of these blocks."""
    return any(name.startswith(f"{block}.") for block in blocks)


def _gone(layer: LayerSize) -> LayerSize:
    outputs = None if layer.outputs is None else 0
    return replace(layer, outputs=outputs, groups=1, params=0, macs=0)


def _parse(rows: Sequence[Mapping[str, Any]]) -> dict[str, LayerSize]:
    return {
        str(row["name"]): LayerSize(
            name=str(row["name"]),
            type=str(row["type"]),
            inputs=None if row["in"] is None else int(row["in"]),
            outputs=None if row["out"] is None else int(row["out"]),
            groups=int(row["groups"]),
            params=int(row["params"]),
            macs=int(row["macs"]),
        )
        for row in rows
    }


_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def _from_plan(plan: Mapping[str, Any]) -> dict[str, LayerSize]:
    """Read widths and parameters off the shapes; of MACs they tell nothing."""
    gathers = plan.get("gathers", {})
    wrapped = {f"{name}.conv": name for name in gathers}
    indices = {f"{name}.gather_{side}" for name, sides in gathers.items() for side in sides}
    found = {}
    for full, layer in plan["modules"].items():
        name, attributes = wrapped.get(full, full), layer["attrs"]
        inputs = attributes.get("in_channels", attributes.get("in_features"))
        outputs = attributes.get("out_channels", attributes.get("out_features"))
        params = sum(prod(s) for n, s in layer["tensors"].items() if n not in _STATISTICS)
        if full not in indices and params:
            groups = int(attributes.get("groups", 1))
            found[name] = LayerSize(name, layer["type"], inputs, outputs, groups, params, None)
    return found


def layer_records(networks: Sequence[Network]) -> list[dict[str, Any]]:
    """Return a flat mapping for each layer of each network, ready for JSON and CSV.

    Keys are ``network``, those of :class:`LayerSize`, and these with ``dense_`` before them, None
    where the file does not say.
    """
    records = []
    for network in networks:
        for name, layer in network.layers.items():
            before = asdict(network.dense[name]) if name in network.dense else {}
            sides = ("inputs", "outputs", "groups", "params", "macs")
            dense = {f"dense_{key}": before.get(key) for key in sides}
            records.append({"network": network.label, **asdict(layer), **dense})
    return records


def write_layers_csv(networks: Sequence[Network], path: str | Path) -> Path:
    """Write one line for each layer of each network to a CSV file, replacing it in one step."""
    records = layer_records(networks)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]) if records else ["network"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    with output_file(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    return Path(path).expanduser()
