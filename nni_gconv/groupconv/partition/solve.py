"""`partition`: one score matrix in, one partition out; `partition_many` for a whole network."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nni_gconv import compat
from nni_gconv.errors import ConfigError, unknown_name
from nni_gconv.groupconv.partition.anneal import anneal, default_sweeps
from nni_gconv.groupconv.partition.assignment import alternate, retained_mass
from nni_gconv.groupconv.partition.bounds import upper_bound
from nni_gconv.groupconv.partition.criterion import is_tensor
from nni_gconv.groupconv.partition.exact import solve_exactly
from nni_gconv.groupconv.partition.grps import grps_permutations, match_blocks, sort_permutations
from nni_gconv.groupconv.partition.result import Partition, numbered_by_column
from nni_gconv.groupconv.partition.spectral import spectral_groups

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Groups = tuple[Ints, Ints]
Method = Literal["assignment", "grps", "same", "sort"]
METHODS: tuple[Method, ...] = ("assignment", "grps", "same", "sort")

#: Times that the best so far is warmed and cooled, and chains of each that are finished exactly.
_CYCLES, _FINISHED = 2, 2
#: A large matrix is annealed with fewer chains, but at least 2, to afford this many sweeps.
_FEWEST, _ENOUGH_SWEEPS = 2, 200
#: Scores of equal layers that are annealed together, at most.
BATCH_NUMBERS = 1 << 19


def partition(
    scores: Any,
    num_groups: int,
    method: Method = "assignment",
    num_sort_iters: int = 10,
    restarts: int = 8,
    seed: int = 0,
    *,
    sweeps: int | None = None,
) -> Partition:
    """Split filters and input channels into groups that retain as much score as can be.

    Maximises ``sum of scores[f, c] over f, c in the same group``, with F/G rows and C/G columns in
    each of the G groups: the mask of a group convolution (arXiv 1811.09341).

    Parameters
    ----------
    scores : array or tensor, shape (F, C)
        Finite, non-negative scores, for example :func:`kernel_norms` of a weight.
    num_groups : int
        G; divides F and C.
    method : {"assignment", "grps", "same", "sort"}, optional
        ``"assignment"``: the optimum where it can be enumerated; else alternating exact balanced
        assignment from the paper's result and from a spectral start, then simulated annealing
        of the better one, finished by exact assignment. Never retains less than ``"grps"`` does.
        ``"grps"``: the paper's heuristic. ``"same"``, ``"sort"``: its baselines. The last three
        end in the paper's matching of blocks.
    num_sort_iters : int, optional
        N_S of the paper's heuristic (also the first start of ``"assignment"``).
    restarts : int, optional
        Annealing chains (fewer, but at least 2, for large matrices); 0: no annealing, for a
        result in milliseconds.
    seed : int, optional
        Same seed, same result.
    sweeps : int, optional
        Annealing sweeps of each chain. The default affords about a fifth of a second; the
        retained score grows slowly, like the logarithm of this number.

    Returns
    -------
    Partition
        Groups are numbered by their smallest column.

    Raises
    ------
    ConfigError
        A ``ValueError``: `scores` is no matrix, or has a negative or non-finite entry;
        `num_groups` does not divide F and C; another argument is out of range.

    Examples
    --------
    >>> scores = [[9, 1, 8, 2], [1, 7, 2, 6], [8, 2, 9, 1], [2, 6, 1, 7.5]]
    >>> p = partition(scores, num_groups=2)
    >>> p.row_groups.tolist(), p.col_groups.tolist(), p.retained, p.optimal
    ([0, 1, 0, 1], [0, 1, 0, 1], 60.5, True)
    """
    options = _Options.checked(method, num_sort_iters, restarts, seed, sweeps)
    return _solve([_Problem.checked(scores, num_groups)], options)[0]


def partition_many(
    scores: Sequence[Any],
    num_groups: int | Sequence[int],
    method: Method = "assignment",
    num_sort_iters: int = 10,
    restarts: int = 8,
    seed: int = 0,
    *,
    sweeps: int | None = None,
    workers: int | None = None,
    bounds: bool = True,
) -> list[Partition]:
    """Partition many layers at once: equal shapes together, batches of them in threads.

    Each result equals that of :func:`partition` with the same arguments, whatever `workers` is.

    Parameters
    ----------
    scores : sequence of array or tensor, shapes (F, C)
        One matrix for each layer.
    num_groups : int or sequence of int
        G of all layers, or of each.
    method, num_sort_iters, restarts, seed, sweeps
        As in :func:`partition`.
    workers : int, optional
        Threads; by default as many as the process has cores.
    bounds : bool, default True
        False saves the time of the bounds where annealing does not need them (``restarts=0``):
        they are infinite, but where the optimum was enumerated.

    Returns
    -------
    list of Partition
        In the order of `scores`.

    Raises
    ------
    ConfigError
        As :func:`partition`, with the index of the layer in front; or lengths differ.

    Examples
    --------
    >>> import numpy as np
    >>> [p.retained for p in partition_many([np.eye(4), np.ones((4, 2))], 2)]
    [4.0, 4.0]
    """
    layers = list(scores)
    counts = list(num_groups) if isinstance(num_groups, Sequence) else [num_groups] * len(layers)
    if len(counts) != len(layers):
        raise ConfigError(f"num_groups: {len(counts)} counts for {len(layers)} matrices of scores")
    if workers is not None:
        workers = checked_count("workers", workers, 1)
    options = _Options.checked(method, num_sort_iters, restarts, seed, sweeps, bounds)
    problems = []
    for index, (layer, count) in enumerate(zip(layers, counts, strict=True)):
        try:
            problems.append(_Problem.checked(layer, count))
        except ConfigError as error:
            raise ConfigError(f"scores[{index}]: {error}") from None
    batches = _batches(problems)
    results: dict[int, Partition] = {}
    with ThreadPoolExecutor(workers or compat.usable_cores()) as pool:
        solved = pool.map(lambda batch: _solve([problems[i] for i in batch], options), batches)
        for batch, partitions in zip(batches, solved, strict=True):
            results.update(zip(batch, partitions, strict=True))
    return [results[index] for index in range(len(layers))]


@dataclass(frozen=True)
class _Options:
    method: Method
    iters: int
    chains: int
    seed: int
    sweeps: int | None
    bounds: bool

    @classmethod
    def checked(
        cls, method: Any, iters: Any, restarts: Any, seed: Any, sweeps: Any, bounds: bool = True
    ) -> _Options:
        if method not in METHODS:
            raise ConfigError(unknown_name("method", method, METHODS, "partition"))
        return cls(
            method,
            checked_count("num_sort_iters", iters, 0),
            checked_count("restarts", restarts, 0),
            checked_count("seed", seed, 0),
            None if sweeps is None else checked_count("sweeps", sweeps, 1),
            bounds,
        )


@dataclass(frozen=True)
class _Problem:
    """Scores as given, and divided by a power of two to be at most 1.

    A power of two changes no digit, and frees the solver from the scale of the scores.
    """

    original: Floats
    scaled: Floats
    exponent: int
    num_groups: int

    @classmethod
    def checked(cls, scores: Any, num_groups: Any) -> _Problem:
        matrix = _checked_scores(scores)
        groups = checked_count("num_groups", num_groups, 1)
        rows, cols = matrix.shape
        if rows % groups or cols % groups:
            raise ConfigError(
                f"num_groups: {groups} does not divide both the {rows} rows (filters) and the "
                f"{cols} columns (input channels) of scores"
            )
        exponent = int(np.frexp(matrix.max())[1])
        return cls(matrix, np.ldexp(matrix, -exponent), exponent, groups)


def _batches(problems: Sequence[_Problem]) -> list[list[int]]:
    """Indices of equal shapes and group counts, in batches that fit a cache; largest first."""
    kinds: dict[tuple[int, ...], list[int]] = {}
    for index, problem in enumerate(problems):
        kinds.setdefault((*problem.original.shape, problem.num_groups), []).append(index)
    batches = []
    for (rows, cols, _), members in kinds.items():
        length = max(1, BATCH_NUMBERS // (rows * cols))
        batches += [members[i : i + length] for i in range(0, len(members), length)]
    return sorted(batches, key=lambda batch: -problems[batch[0]].original.size)


def _solve(problems: Sequence[_Problem], options: _Options) -> list[Partition]:
    """Partition score matrices of one shape and one number of groups."""
    scores, num_groups = [problem.scaled for problem in problems], problems[0].num_groups
    if options.method == "assignment":
        found = _search(scores, num_groups, options)
    else:
        found = []
        for matrix in scores:
            groups = _heuristic(matrix, num_groups, options.method, options.iters)
            mass = retained_mass(matrix, *groups)
            bound = upper_bound(matrix, num_groups, mass, steps=0) if options.bounds else np.inf
            found.append(_Found(groups, mass, bound))
    partitions = []
    for problem, result in zip(problems, found, strict=True):
        retained = retained_mass(problem.original, *result.groups)
        bound = max(retained, float(np.ldexp(result.bound, problem.exponent)))
        sides = numbered_by_column(*result.groups)
        partitions.append(Partition(*sides, retained, bound, float(problem.original.sum())))
    return partitions


@dataclass
class _Found:
    groups: Groups
    mass: float
    bound: float
    final: bool = False


def _search(scores: Sequence[Floats], num_groups: int, options: _Options) -> list[_Found]:
    """Best partitions found, and bounds; a matrix is done when the two meet."""
    found = [_first(matrix, num_groups, options) for matrix in scores]
    left = [index for index, result in enumerate(found) if not result.final]
    if not left:
        return found
    chains, sweeps = _effort(scores[0].shape, num_groups, options.chains, options.sweeps)
    rng = np.random.default_rng(options.seed)
    for _ in range(_CYCLES):
        share = max(1, sweeps // _CYCLES)
        starts = [found[i].groups for i in left]
        warmed = anneal([scores[i] for i in left], num_groups, starts, chains, share, rng)
        for index, (_, cols) in zip(left, warmed, strict=True):
            best = found[index]
            best.groups, best.mass = _finished(
                scores[index], num_groups, list(cols[:_FINISHED]), best.groups, best.mass
            )
    for index in left:
        found[index].bound = upper_bound(scores[index], num_groups, found[index].mass)
    return found


def _first(scores: Floats, num_groups: int, options: _Options) -> _Found:
    """The optimum if it can be enumerated, else the better of the paper's and a spectral start."""
    exact = solve_exactly(scores, num_groups)
    if exact is not None:
        mass = retained_mass(scores, *exact)
        return _Found(exact, mass, mass, final=True)
    paper = _heuristic(scores, num_groups, "grps", options.iters)
    starts = [paper[1], spectral_groups(scores, num_groups)]
    best, mass = _finished(scores, num_groups, starts, paper, retained_mass(scores, *paper))
    if not (options.bounds or options.chains):
        return _Found(best, mass, np.inf, final=True)
    bound = upper_bound(scores, num_groups, mass, steps=0)
    return _Found(best, mass, bound, final=bound <= mass * (1 + 1e-10) or not options.chains)


def _finished(
    scores: Floats, num_groups: int, starts: list[Ints], best: Groups, mass: float
) -> tuple[Groups, float]:
    """The heaviest of `best` and what exact assignment makes of column groups."""
    for col_groups in starts:
        rows, cols, _ = alternate(scores, col_groups, num_groups)
        candidate = retained_mass(scores, rows, cols)
        if candidate > mass:
            best, mass = (rows, cols), candidate
    return best, mass


def _effort(
    shape: tuple[int, ...], num_groups: int, chains: int, sweeps: int | None
) -> tuple[int, int]:
    """Chains and sweeps: of a large matrix, long chains find more than many do."""
    if sweeps is not None:
        return chains, sweeps
    rows, cols = shape
    while chains > _FEWEST and default_sweeps(rows, cols, num_groups, chains) < _ENOUGH_SWEEPS:
        chains = max(_FEWEST, chains // 2)
    return chains, default_sweeps(rows, cols, num_groups, chains)


def _heuristic(scores: Floats, num_groups: int, method: Method, iters: int) -> Groups:
    """The paper's permutations, then its matching of blocks."""
    if method == "grps":
        rows, cols = grps_permutations(scores, num_groups, iters)
    elif method == "sort":
        rows, cols = sort_permutations(scores)
    else:
        rows, cols = np.arange(scores.shape[0]), np.arange(scores.shape[1])
    return match_blocks(scores, rows, cols, num_groups)


def _checked_scores(scores: Any) -> Floats:
    try:
        if is_tensor(scores):
            scores = scores.detach().cpu()
            scores = (scores if scores.is_complex() else scores.double()).numpy()
        if np.iscomplexobj(scores):
            raise TypeError("they are complex")
        matrix = np.array(scores, np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: tensors without data
        reason = str(error).splitlines()[0]
        raise ConfigError(f"scores: not a matrix of numbers ({reason})") from None
    if matrix.ndim != 2 or not matrix.size:
        raise ConfigError(
            f"scores: one row per filter and one column per input channel, not shape {matrix.shape}"
        )
    wrong = ~(np.isfinite(matrix) & (matrix >= 0))
    if wrong.any():
        row, col = (int(i[0]) for i in np.nonzero(wrong))
        raise ConfigError(
            f"scores[{row}, {col}]: scores are finite and not negative, not {matrix[row, col]}"
        )
    if matrix.max() > np.finfo(np.float64).max / matrix.size:
        raise ConfigError(f"scores: so large (up to {matrix.max():.0e}) that their sum overflows")
    return matrix


def checked_count(name: str, value: Any, least: int) -> int:
    """Return a whole number of at least `least`, or raise a ConfigError."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ConfigError(f"{name}: an integer of at least {least}, not {value!r}")
    return int(value)
