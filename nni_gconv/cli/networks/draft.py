"""A first recipe for a network of one's own: what is seen of it and of its images, written down.

>>> print(Draft("my_net:Net", {"name": "digits"}, budget=0.5).stages()[0].splitlines()[0])
train:                      # the dense network; give model.weights to leave this out
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from nni_gconv.diagnose import Diagnosis, SetDiagnosis, diagnose
from nni_gconv.errors import BudgetError
from nni_gconv.recipe import Recipe, parse_recipe
from nni_gconv.yaml12 import read_yaml, write_yaml

#: Rows of a list in a comment before the rest is counted.
_ROWS = 12


@dataclass(frozen=True)
class Draft:
    """What a first recipe has to say.

    Parameters
    ----------
    model : str
        Its name, as for :func:`nni_gconv.training.zoo.create_model`.
    data : mapping
        The recipe's ``data`` section.
    weights : str, optional
        Trained weights; without them the network is trained first.
    options : mapping
        Further arguments of the constructor.
    budget : float
        MACs that may be left, as a fraction.
    images : int
        Training images there are.
    described : str
        What the data are, in a line.
    file : str
        Name that the recipe gets.
    """

    model: str
    data: Mapping[str, Any]
    weights: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    budget: float = 0.5
    images: int = 1024
    described: str = ""
    file: str = "recipe.yml"

    def text(self, network: nn.Module, example: Tensor) -> str:
        """Look at the network and write the recipe; it is read back before it is returned.

        Raises
        ------
        BudgetError
            The network's layers do not allow the budget.
        TraceError, ConfigError
            It cannot be traced, or the recipe would not be one.
        """
        found = diagnose(network, example, ratio=0.5)
        if self.budget < found.least_macs_ratio:
            raise BudgetError(
                f"--macs {self.budget:g}: its layers allow {found.least_macs_ratio:.3f} of the "
                "MACs at the least"
            )
        kinds = _kinds(network, found.sets)
        shape = "x".join(map(str, example.shape))
        command = f"nni-gconv doctor {self.model} --input {shape}"
        parts = [self._head(found, command), *self.sections(), *self.stages(kinds)]
        text = "\n".join(parts)
        self.recipe(text)
        return text

    @staticmethod
    def recipe(text: str) -> Recipe:
        """Read what was written."""
        return parse_recipe(read_yaml(text, "recipe"))

    def _head(self, found: Diagnosis, command: str) -> str:
        free = [row for row in found.sets if row.reason is None]
        lines = [
            f"Run it in this folder:  nni-gconv run {self.file}",
            "What every key may be:  nni-gconv docs recipe",
            "",
            f"{self.model}: {found.params:,} parameters, {found.macs:,} MACs for one image.",
            f"At the least {found.least_macs_ratio:.3f} of the MACs and "
            f"{found.least_params_ratio:.3f} of the parameters can be left.",
            "",
            "Layers that lose channels, those of one line together, and the share of all MACs that "
            "half of them saves:",
            *_rows(
                [f"  {_names(row)}: {row.channels} channels, {row.macs_saved:.1%}" for row in free],
                command,
            ),
            *_kept(found.sets, command),
            *(f"  note: {note}" for note in found.notes),
        ]
        return _comment(lines)

    def sections(self) -> list[str]:
        """Return ``model`` and ``data``."""
        model: dict[str, Any] = {"name": self.model}
        if self.options:
            model["options"] = dict(self.options)
        if self.weights is not None:
            model["weights"] = self.weights
        return [
            "",
            write_yaml({"model": model}).rstrip(),
            "",
            *([_comment([self.described])] if self.described else []),
            write_yaml({"data": dict(self.data)}).rstrip(),
            "",
        ]

    def stages(self, kinds: Sequence[str] = ("Conv2d",)) -> list[str]:
        """Return the sections of the stages, for layers of these kinds."""
        train = """\
            train:                      # the dense network; give model.weights to leave this out
              epochs: 30
              optimizer: {name: SGD, lr: 0.05, momentum: 0.9, weight_decay: 5.0e-4}
              schedule: {name: cosine, warmup: 2}
              share: experiment         # trials of one NNI experiment train it once
            """
        count = min(1024, max(2, self.images))
        rest = f"""\
            prune:                      # which channels go
              config_list: [{{op_types: [{", ".join(kinds)}]}}]
              budget: {{macs: {self.budget:g}}}      # also params, and latency on this machine
              calibration: {{images: {count}}}   # of the training split: they choose the channels,
                                        # and the weights that are left are fitted to them

            finetune:                   # the small network; without it nothing is trained
              epochs: 10
              optimizer: {{name: SGD, lr: 0.01, momentum: 0.9, weight_decay: 5.0e-4}}
              schedule: {{name: cosine}}
              distill: {{temperature: 4, weight: 0.7}}   # the dense network teaches it; for
                                        # few epochs features: 100 as well, its feature maps

            export: {{formats: [safetensors]}}       # also onnx, pt2
            report: {{latency: {{batch_sizes: [1], threads: 1}}}}
            """
        parts = [] if self.weights is not None else [train]
        return [textwrap.dedent(part) for part in (*parts, rest)]


def experiment(recipe: str) -> str:
    """Write an NNI experiment that runs a recipe at several budgets.

    Parameters
    ----------
    recipe : str
        Name of its file, beside the experiment's.
    """
    return textwrap.dedent(f"""\
        # Three budgets, two learning rates: six trials.
        #
        #   nni-gconv doctor experiment.yml    what will not work, before anything starts
        #   nni-gconv create experiment.yml    checked, on loopback, watched to its end
        experimentName: first
        trialCommand: nni-gconv run {recipe}
        trialCodeDirectory: .
        trialConcurrency: 1
        maxTrialNumber: 6
        searchSpace:
          prune.budget.macs: {{_type: choice, _value: [0.7, 0.5, 0.3]}}
          finetune.optimizer.lr: {{_type: choice, _value: [0.01, 0.003]}}
        tuner: {{name: GridSearch}}
        trainingService: {{platform: local}}
        """)


def _kinds(network: nn.Module, sets: Sequence[SetDiagnosis]) -> list[str]:
    """Name the kinds of the layers that can lose channels."""
    layers = [network.get_submodule(n) for row in sets if row.reason is None for n in row.layers]
    known = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
             nn.ConvTranspose3d, nn.Linear)  # fmt: skip
    return [k.__name__ for k in known if any(isinstance(one, k) for one in layers)] or ["Conv2d"]


def _kept(sets: Sequence[SetDiagnosis], command: str) -> list[str]:
    """Say what keeps its channels, and why."""
    by_reason: dict[str, list[str]] = {}
    for row in sets:
        if row.reason is not None:
            by_reason.setdefault(row.reason, []).extend(row.layers)
    if not by_reason:
        return []
    lines = [f"  {', '.join(dict.fromkeys(names))}: {why}" for why, names in by_reason.items()]
    return ["", "Layers that keep theirs:", *_rows(lines, command)]


def _rows(lines: Sequence[str], command: str) -> list[str]:
    more = len(lines) - _ROWS
    return [
        *lines[:_ROWS],
        *([f"  and {more} more ({command} shows all)"] if more > 0 else []),
    ]


def _names(row: SetDiagnosis) -> str:
    more = f" and {len(row.layers) - 3} more" if len(row.layers) > 3 else ""
    return ", ".join(row.layers[:3]) + more


def _comment(lines: Sequence[str]) -> str:
    wrapped: list[str] = []
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()))
        parts = textwrap.wrap(line, 96, subsequent_indent=indent + "  ") or [""]
        wrapped += [f"# {part}".rstrip() for part in parts]
    return "\n".join(wrapped)
