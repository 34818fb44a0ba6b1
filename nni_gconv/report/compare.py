"""Two small networks of one architecture side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from nni_gconv.errors import ConfigError
from nni_gconv.report.layers import LayerSize, Network, total_macs, went

if TYPE_CHECKING:
    from nni_gconv.display import Table


@dataclass(frozen=True)
class Comparison:
    """Two networks, layer by layer; made by :func:`compare_networks`.

    Attributes
    ----------
    a, b : Network
        The two.
    """

    a: Network
    b: Network

    def rows(self) -> list[tuple[LayerSize | None, LayerSize | None, LayerSize | None]]:
        """Return each layer as it is in the dense network, in `a` and in `b`."""
        dense = self.a.dense or self.b.dense
        names = dict.fromkeys([*dense, *self.a.layers, *self.b.layers])
        return [(dense.get(n), self.a.layers.get(n), self.b.layers.get(n)) for n in names]

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        dense = self.a.dense or self.b.dense
        return {
            "model": self.a.model,
            "a": _summary(self.a),
            "b": _summary(self.b),
            "dense": {
                "params": sum(layer.params for layer in dense.values()),
                "macs": total_macs(dense),
            }
            if dense
            else None,
            "layers": [
                {
                    "name": next(layer.name for layer in row if layer is not None),
                    "dense": row[0] and asdict(row[0]),
                    "a": row[1] and asdict(row[1]),
                    "b": row[2] and asdict(row[2]),
                    "equal": row[1] == row[2],
                }
                for row in self.rows()
            ],
        }

    def table(self) -> Table:
        """Show the layers that have a width, and totals of all; what differs is bold."""
        from rich import box
        from rich.text import Text

        from nni_gconv.display import Table

        table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_footer=True)
        found = self.to_dict()
        ends = [found[key] or {} for key in ("dense", "a", "b")]
        table.add_column("layer", footer="total")
        for heading in ("dense", "A", "B"):
            table.add_column(heading)
        for key, what in (("params", "params"), ("macs", "MACs")):
            for heading, end in zip(("A", "B"), ends[1:], strict=True):
                table.add_column(f"{what} {heading}", justify="right", footer=_number(end[key]))
        for dense, a, b in self.rows():
            known = [layer for layer in (dense, a, b) if layer is not None]
            if all(layer.outputs is None for layer in known):
                continue
            cells = [known[0].name, *("" if x is None else x.widths() for x in (dense, a, b))]
            for key in ("params", "macs"):
                cells += ["" if x is None else _number(getattr(x, key)) for x in (a, b)]
            style = "bold" if a != b else ""
            table.add_row(*(Text(cell) for cell in cells), style=style)
        table.caption = self.legend()
        return table

    def legend(self) -> str:
        """Say which is which and what each comes to beside the dense network."""
        found = self.to_dict()
        lines = []
        for letter, network in (("A", self.a), ("B", self.b)):
            parts = [f"{letter}: {network.label}"]
            prune = network.recipe.get("prune") or {}
            if prune.get("method"):
                budget = ", ".join(f"{k} {v:g}" for k, v in (prune.get("budget") or {}).items())
                parts.append(f"{prune['method']} {budget}".rstrip())
            for key, what in (("params", "params"), ("macs", "MACs")):
                now, base = found[letter.lower()][key], (found["dense"] or {}).get(key)
                if now is not None and base:
                    parts.append(f"{what} {now / base:.3f} of dense")
            if network.blocks:
                parts.append(f"without {len(network.blocks)} blocks")
            if network.gathers:
                parts.append(f"{network.gathers} gathers")
            lines.append(", ".join(parts))
        return "\n".join([*lines, "16→32 g4: 16 inputs, 32 outputs, 4 groups"])


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _summary(network: Network) -> dict[str, Any]:
    return {
        "label": network.label,
        "file": str(network.file),
        "params": network.params,
        "macs": network.macs,
        "gathers": network.gathers,
    }


def compare_networks(a: Network, b: Network) -> Comparison:
    """Put two networks side by side.

    Raises
    ------
    ConfigError
        They are of different architectures; says where they part.

    Examples
    --------
    >>> from nni_gconv.report import read_network
    >>> compare_networks(read_network("runs/a"), read_network("runs/b")).rows()  # doctest: +SKIP
    """
    reason = _difference(a, b)
    if reason:
        raise ConfigError(f"{a.label} and {b.label} are of different architectures: {reason}")
    return Comparison(a, b)


def _difference(a: Network, b: Network) -> str | None:
    if a.model != b.model:
        return f"{a.model} and {b.model}"
    for one, other in ((a, b), (b, a)):
        for name, layer in one.layers.items():
            if name not in other.layers:
                if went(name, other.blocks):
                    continue
                return f"only {one.label} has a layer {name!r}"
            if layer.type != other.layers[name].type:
                kind = other.layers[name].type
                return f"{name} is a {layer.type} in {one.label}, a {kind} in {other.label}"
    if a.dense and b.dense:
        for name, layer in a.dense.items():
            before = b.dense.get(name)
            if before is not None and layer.widths() != before.widths():
                return (
                    f"{name} began as {layer.widths()} in {a.label}, "
                    f"as {before.widths()} in {b.label}"
                )
    return None
