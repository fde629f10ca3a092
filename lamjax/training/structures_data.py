"""Pairs of a fine-tuning on structures: what is trained on, what is held out, and the batches of every step."""

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import ase.data
import numpy as np

from lamjax.audit import theory_levels as levels
from lamjax.data import (
    Frame,
    PackedPairs,
    Pair,
    ReadOptions,
    StructureBatch,
    batches,
    digests,
    facts,
    iterate,
    matching,
    n_batches,
    pair_batches,
    pair_digests,
    read_pairs,
    sample,
)
from lamjax.data.pairs import SAME_CELL, STILL, listed
from lamjax.losses import StructureLossConfig
from lamjax.neighbors import Neighbors, Shell, host_neighbors, plan_capacities
from lamjax.potential import Potential
from lamjax.system import System
from lamjax.training.config import read_options
from lamjax.training.structures_config import StructureTuneConfig
from lamjax.training.tasks import labelled
from lamjax.training.tuning import check_apart

MOST = 2000  # labelled frames on which force errors are measured
WIDER = 1.5  # neighbour slots after an epoch in which they were too few, relative to before
HELD_OUT, REPLAYED = "heldout", "replay"  # labelled frames on which errors are measured


Kind = TypeVar("Kind")


class PairSets(NamedTuple):
    """Pairs to train on and to hold out, labelled frames, and replayed frames."""

    train: list[Pair]
    validation: list[Pair]
    frames: dict[str, Sequence[Frame]]  # labelled ones on which errors are measured: HELD_OUT, REPLAYED
    replay: Sequence[Frame]  # empty without


def read_sets(config: StructureTuneConfig, potential: Potential, replayed: Potential) -> PairSets:
    """All pairs and frames of a config; what cannot be used is left out and named in warnings.

    Raises ValueError if nothing is left, for pairs that are both trained on and held out, and, where relaxations are
    learned, if all held-out starts are their targets.
    """

    options = read_options(config)

    def pairs_of(files: Sequence[str]) -> list[Pair]:
        rules = {"fmax": config.fmax, "variable_cell": config.variable_cell}
        alone = not isinstance(config.objective, StructureLossConfig)
        pairs = read_pairs(files, **rules, options=options, targets_alone=alone)
        return _of_known_elements(pairs, potential.elements)

    pairs = pairs_of(config.pairs)
    if config.validation:
        train, validation = pairs, pairs_of(config.validation)
        check_apart(train, validation, "pairs", _name)
    else:
        train, validation = hold_out(pairs, config.hold_out, config.group_by, config.seed)
    if isinstance(config.objective, StructureLossConfig):
        validation = _begun_elsewhere(validation)
    replay = labelled(config.replay.files, replayed, options) if config.replay else []
    if len(replay_levels := levels.levels(replay)) > 1:
        warnings.warn(
            f"replay: one head learns {levels.described(replay_levels)}: of one level of theory?", stacklevel=2
        )
    frames = {HELD_OUT: _labelled_steps(config.validation or config.pairs, validation, options)}
    frames |= {REPLAYED: sample(replay, MOST)} if config.replay else {}
    return PairSets(train, validation, {name: some for name, some in frames.items() if len(some)}, replay)


def is_at_target(pair: Pair) -> bool:
    """True for a start that is its target: a relaxation from there finds no basin."""
    start, target = pair.start, pair.target
    moved = matching.displacements(start, target)
    same_cell = np.allclose(start.cell, target.cell, rtol=0, atol=SAME_CELL)
    return bool(same_cell and np.abs(np.where(pair.fixed, 0, moved)).max() < STILL)


def _begun_elsewhere(pairs: list[Pair]) -> list[Pair]:
    """The pairs whose starts are not their targets; the others are named in a warning. ValueError if none is left."""
    lines = [pair.source for pair in pairs if is_at_target(pair)]
    if len(lines) == len(pairs):
        raise ValueError(
            f"All {len(pairs)} held-out starts are their targets, the first {lines[0]}: relaxed from there, any model "
            "would seem to find the right structure. Give relaxations with their starts (unrelaxed structures) as "
            "validation, or learn from targets alone with the objective force or newton."
        )
    if lines:
        headline = f"Left out {len(lines)} of {len(pairs)} held-out pairs whose start is their target"
        warnings.warn(listed(headline, lines), stacklevel=3)
    return [pair for pair in pairs if not is_at_target(pair)]


def hold_out(pairs: Sequence[Kind], share: float, group_by: str | None, seed: int) -> tuple[list[Kind], list[Kind]]:
    """(to train on, held out): about a `share` of the pairs at random, at least one of each kind.

    With `group_by`, a key of the starts' info, groups of equal values stay together. Raises ValueError if a pair has
    no such key, or if there is only one group.
    """
    groups = [_group(pair, group_by) if group_by else str(k) for k, pair in enumerate(pairs)]
    names = list(dict.fromkeys(groups))
    if len(names) < 2:
        what = f"value of {group_by!r}" if group_by else "pair"
        raise ValueError(f"There is only one {what}: nothing can be held out. Name other files as `validation`.")
    chosen: set[str] = set()
    for k in np.random.default_rng(seed).permutation(len(names))[:-1]:
        if chosen and sum(group in chosen for group in groups) >= share * len(pairs):
            break
        chosen.add(names[k])
    parts = ([p for p, g in zip(pairs, groups, strict=True) if (g in chosen) == held] for held in (False, True))
    first, second = parts
    return first, second


def _group(pair: Any, key: str) -> str:
    if key not in pair.info:
        raise ValueError(f"{pair.source}: no {key!r} in its info; it has {', '.join(sorted(pair.info)) or 'nothing'}.")
    return str(pair.info[key])


def _of_known_elements(pairs: list[Pair], elements: Sequence[str] | None) -> list[Pair]:
    """The pairs whose elements the model knows; a warning names the others."""
    if elements is None:
        return pairs
    known = {ase.data.atomic_numbers[e] for e in elements}
    strange = {k: sorted(set(pair.start.numbers.tolist()) - known) for k, pair in enumerate(pairs)}
    lines = [
        f"{pairs[k].source}: {', '.join(ase.data.chemical_symbols[z] for z in unknown)}"
        for k, unknown in strange.items()
        if unknown
    ]
    if len(lines) == len(pairs):
        raise ValueError(
            f"No pair has only elements of the model ({', '.join(elements)}); {lines[0]} is not among them."
        )
    if lines:
        headline = f"Left out {len(lines)} of {len(pairs)} pairs with elements that the model does not know"
        warnings.warn(listed(f"{headline} ({', '.join(elements)})", lines), stacklevel=2)
    return [pair for k, pair in enumerate(pairs) if not strange[k]]


def _name(pair: Pair) -> tuple[bytes, bytes]:
    """The start of a pair, to 1e-6 Å."""
    return np.asarray(pair.start.numbers).tobytes(), np.round(pair.start.positions, 6).tobytes()


def _labelled_steps(files: Sequence[str], pairs: Sequence[Pair], options: ReadOptions) -> Sequence[Frame]:
    """The labelled frames of the files that belong to the pairs: whole trajectories where there are such."""
    ids = {(key, str(pair.info[key])) for pair in pairs for key in ("relax_id", "pair_id") if key in pair.info}
    sources = {pair.source for pair in pairs}
    whole = {pair.info.get("trajectory") for pair in pairs}

    def belongs(frame: Frame, path: str) -> bool:
        mine = {(key, str(frame.info[key])) for key in ("relax_id", "pair_id") if key in frame.info}
        known = frame.source in sources or str(path) in whole or bool(mine & ids)
        return bool(frame.labels.weights.any()) and known

    frames = []
    for path in files:
        with contextlib.suppress(ValueError):  # files that cannot be read were named with the pairs
            read = iterate(path, on_error=lambda error: None, options=options, on_remark=lambda remark: None)
            frames += [frame for frame in read if belongs(frame, path)]
    return sample(frames, MOST)


def wider(packed: PackedPairs, shells: Sequence[Shell]) -> PackedPairs:
    """Half as many neighbour slots more, where the model's `sel` allows."""
    shapes = []
    for shape in packed.shapes:
        wanted = tuple(int(np.ceil(WIDER * n)) for n in shape.capacities)
        shapes.append(shape._replace(capacities=plan_capacities(wanted, tuple(shells))))

    def widened(row: StructureBatch, capacities: tuple[int, ...]) -> StructureBatch:
        def lists(system: System, neighbors: Neighbors) -> Neighbors:
            return host_neighbors(system, tuple(shells), capacities)._replace(offsets=neighbors.offsets)

        start, target = lists(row.start, row.neighbors), lists(row.target, row.target_neighbors)
        return row._replace(neighbors=start, target_neighbors=target)

    rows = zip(shapes, packed.rows, strict=True)
    rows = tuple(tuple(widened(row, shape.capacities) for row in members) for shape, members in rows)
    return packed._replace(shapes=tuple(shapes), rows=rows)


def noisy_batches(packed: PackedPairs, config: StructureTuneConfig, start: int = 0) -> Iterator[StructureBatch]:
    """The batches after the first `start`; order and noise are functions of seed and epoch alone."""
    shown = batches(packed, config.batch_size, seed=config.seed, start=start)
    if not config.noise:
        return shown
    return _noisy(packed, config, *divmod(start, n_batches(packed, config.batch_size)))


def _noisy(packed: PackedPairs, config: StructureTuneConfig, epoch: int, skipped: int) -> Iterator[StructureBatch]:
    while True:
        rng = np.random.default_rng([config.seed, epoch, 1])
        shown = pair_batches(packed, config.batch_size, seed=[config.seed, epoch])
        yield from itertools.islice((_moved(batch, config.noise, rng) for batch in shown), skipped, None)
        epoch, skipped = epoch + 1, 0


def fingerprint(sets: PairSets) -> dict[str, dict[str, Any]]:
    """Digests of the data, by which changed data are recognised when a run continues."""

    def of_pairs(pairs: Sequence[Pair]) -> dict[str, Any]:
        distances = [float(np.abs(pair.target.positions).sum()) for pair in pairs]
        names = {"digests": {"pairs": pair_digests(pairs)}}
        return {"pairs": len(pairs), "position_sum": float(np.sum(distances)), **names}

    facts_of_sets = {"train": of_pairs(sets.train), "validation": of_pairs(sets.validation)}
    if len(sets.replay):
        facts_of_sets["replay"] = {"frames": len(sets.replay), "energy_sum": float(np.sum(facts(sets.replay).energy))}
        facts_of_sets["replay"] |= {"digests": {"frames": digests(sets.replay)}}
    if HELD_OUT in sets.frames:
        facts_of_sets["labelled steps"] = {"digests": {"frames": digests(sets.frames[HELD_OUT])}}
    return facts_of_sets


def _moved(batch: StructureBatch, noise: float, rng: np.random.Generator) -> StructureBatch:
    """The batch with the free atoms of its starts displaced by a normal distribution (Å)."""
    x, free = batch.start.positions, (batch.start.numbers > 0)[..., None] & ~batch.fixed
    positions = (x + np.where(free, rng.normal(scale=noise, size=x.shape), 0)).astype(x.dtype)
    return batch._replace(start=batch.start._replace(positions=positions))
