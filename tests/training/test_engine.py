"""Runs of a user's own loss: everything that the built-in ones have, for frames and for pairs."""

import itertools
from dataclasses import replace
from pathlib import Path

import ase.build
import chex
import jax
import jax.numpy as jnp
import label_frames as make
import numpy as np
import pytest

from lamjax import data, losses, training
from lamjax.data.pairs import pairs_from_frames
from lamjax.neighbors import Shell
from lamjax.training import engine, records

TARGETS = np.linspace(-1.0, 1.0, 7)


def loss(params, batch, lr_ratio=1.0):
    """The square distance of one number from those of a batch."""
    away = params["x"] - batch["target"]
    return jnp.mean(away**2), {"away": jnp.mean(jnp.abs(away)), "n_seen": jnp.size(away)}


def batches_from(start: int):
    for k in itertools.count(start):
        yield {"target": TARGETS[[k % 7, (3 * k + 1) % 7]]}


GOAL = training.objective(
    loss, batches_from, measure=lambda params: {"size": float(abs(params["x"]))}, score="size",
    fingerprint={"targets": {"sum": float(TARGETS.sum())}},
)  # fmt: skip


def settings(output: Path, **changes) -> training.RunConfig:
    rate = training.ScheduleConfig("constant", 0.05)
    common = {"print_every": 2, "validate_every": 4, "save_every": 5, "ema_decay": 0.5}
    return training.RunConfig(str(output), 12, training.OptimizerConfig("adam"), rate, **common | changes)


def begin(output: Path, resume: bool = False, goal=GOAL, **changes):
    return training.prepare(goal, {"x": jnp.array(2.0)}, settings(output, **changes), resume=resume)


def test_a_loss_of_ones_own_is_recorded_measured_saved_and_resumed(tmp_path):
    events = []
    whole = training.follow(begin(tmp_path / "whole"), events.append)
    kept = [event for event in events if isinstance(event, engine.RunRecord)]
    assert [event.step for event in kept] == [2, 4, 6, 8, 10, 12]
    assert [event.step for event in kept if event.validation] == [4, 8, 12]
    assert kept[-1].best and kept[-1].validation == {"size": float(whole["x"])}  # of the running mean
    assert kept[0].train.keys() == {"away", "n_seen"} and kept[0].train["n_seen"] == 4  # of two steps
    assert sorted(training.saved_steps(tmp_path / "whole" / "states")) == [5, 10, 12]
    for event in training.events(begin(tmp_path / "killed")):
        if isinstance(event, engine.Saved):
            break
    with pytest.raises(ValueError, match="up to step 5.*Add --resume"):
        begin(tmp_path / "killed")
    again = training.follow(begin(tmp_path / "killed", resume=True))
    chex.assert_trees_all_equal(whole, again)
    for name in (records.HISTORY, records.VALIDATION):
        one, other = (records.until(tmp_path / run / name, 12) for run in ("whole", "killed"))
        # what a record is the mean of begins with the steps after the state
        assert one[-1] == other[-1] and [row["step"] for row in one] == [row["step"] for row in other]
    assert training.follow(begin(tmp_path / "whole", resume=True)) == whole  # nothing is left to do


def test_a_run_goes_on_with_the_same_settings_and_data(tmp_path):
    training.follow(begin(tmp_path))
    with pytest.raises(ValueError, match="begun with another config: accumulate: 1 -> 2"):
        begin(tmp_path, resume=True, accumulate=2)
    with pytest.raises(ValueError, match=r"begun with other data \(targets: sum .* -> 1.0\)"):
        begin(tmp_path, resume=True, goal=GOAL._replace(fingerprint={"targets": {"sum": 1.0}}))
    longer = training.prepare(GOAL, {"x": jnp.array(2.0)}, replace(settings(tmp_path), steps=20), resume=True)
    assert (longer.done, longer.settings.steps) == (12, 20)  # the rate does not depend on the end
    with pytest.raises(ValueError, match="freeze: no parameter is called y. Known: x"):
        begin(tmp_path / "other", freeze=("y",))


def test_patience_ends_a_run_and_the_untrained_model_may_be_the_best(tmp_path):
    worse = GOAL._replace(score=lambda measured: -measured["size"])  # it shrinks
    events = []
    training.follow(begin(tmp_path, goal=worse, validate_first=True, patience=2), events.append)
    (stopped,) = [event for event in events if isinstance(event, engine.Stopped)]
    assert (stopped.step, stopped.best_step, stopped.best) == (8, 0, -2.0)
    written = [event for event in events if isinstance(event, engine.RunRecord)]
    assert [(record.step, record.best) for record in written if record.validation] == [
        (0, True), (4, False), (8, False),
    ]  # fmt: skip
    assert [row["step"] for row in records.until(tmp_path / records.VALIDATION, 99)] == [0, 4, 8]
    assert [row["step"] for row in records.until(tmp_path / records.HISTORY, 99)] == [2, 4, 6, 8]
    resumed = training.events(begin(tmp_path, resume=True, goal=worse, validate_first=True, patience=2))
    assert list(resumed) == []  # it knows that it is over


def test_epochs_are_told_and_arrays_that_are_too_narrow_grow_between_them(tmp_path):
    seen = []

    def goal(width: int):
        def widen(rows):
            seen.append((width, len(rows), [row["away"] > 0 for row in rows]))
            return None if width == 3 else (goal(width + 1), (f"{width + 1} wide",))

        def batches(start):
            for batch in batches_from(start):
                yield engine.Drawn(f"{width} wide", width), {"target": np.tile(batch["target"], width)}

        return GOAL._replace(batches=batches, per_epoch=5, widen=widen)

    events = []
    training.follow(begin(tmp_path, goal=goal(1), print_every=1), events.append)
    assert [(event.number, event.step, len(event.rows)) for event in events if isinstance(event, engine.Epoch)] == [
        (1, 5, 5), (2, 10, 5),
    ]  # fmt: skip
    assert [event for event in events if isinstance(event, engine.Widened)] == [
        engine.Widened(5, ("2 wide",)), engine.Widened(10, ("3 wide",)),
    ]  # fmt: skip
    assert [event.shape for event in events if isinstance(event, engine.Compiled)] == ["1 wide", "2 wide", "3 wide"]
    assert [(width, n) for width, n, _ in seen] == [(1, 5), (2, 5)]
    assert training.saved_steps(tmp_path / "states") == [5, 10, 12]
    rows = records.read(tmp_path / records.HISTORY)
    assert [int(row["epoch"]) for row in rows] == [1 + k // 5 for k in range(12)]


def silicon_pairs(n: int):
    frames = []
    for k in range(n):
        atoms = ase.build.bulk("Si", cubic=True) * (1 + k % 2, 1, 1)
        atoms.rattle(0.02, seed=k)
        atoms.arrays["final_positions"] = atoms.positions + 0.01 * (k + 1)
        frames.append(data.from_atoms(atoms, source=f"pair {k}"))
    return pairs_from_frames(frames)


def test_pairs_are_planned_packed_drawn_and_measured_as_frames_are():
    pairs, shells = silicon_pairs(5), (Shell(4.0), Shell(3.0))
    packed = data.pack(pairs, data.plan(pairs, shells))
    chex.assert_trees_all_equal(packed, data.pack_pairs(pairs, shells))
    n = data.n_batches(packed, 2)
    assert n == 3 and len(packed.shapes) == 2
    drawn = list(data.batches(packed, 2, seed=3, epochs=3))
    assert len(drawn) == 3 * n
    chex.assert_trees_all_equal(drawn[n : 2 * n], list(data.pair_batches(packed, 2, seed=[3, 1])))
    chex.assert_trees_all_equal(list(data.batches(packed, 2, seed=3, epochs=3, start=4)), drawn[4:])
    in_order = list(data.batches(packed, 2, seed=None, epochs=1))
    chex.assert_trees_all_equal(in_order, list(data.pair_batches(packed, 2)))
    (alone,) = data.batches(packed, 3, seed=None, epochs=1, bucket=0)
    assert alone.start.n_atoms == packed.shapes[0].n_atoms
    less = data.pack(pairs[3:], data.plan(pairs, shells))  # shapes that were planned for more
    assert less.members == ((1,), (0,)) and less.shapes == packed.shapes
    with pytest.raises(ValueError, match="pair 1: 16 atoms.*fit none of the planned shapes.*Plan with all pairs"):
        data.pack(pairs, data.plan(pairs[:1], shells))
    for wrong, message in (
        (1.5, "a whole number of pairs, got 1.5"),
        ("auto", "a whole number of pairs"),
        (0, "least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            data.n_batches(packed, wrong)

    def moved(params, batch, lr_ratio=1.0):
        far = jnp.linalg.norm(batch.target.positions - batch.start.positions, axis=-1).max(axis=-1)
        there = jnp.any(batch.start.numbers > 0, axis=-1)
        n_structures = jnp.sum(there)
        mean = jnp.sum(jnp.where(there, far, 0)) / jnp.maximum(n_structures, 1)
        return params * mean, {"far": mean, "n_structures": n_structures}

    errors = training.evaluate(moved, jnp.ones(()), data.batches(packed, 2, epochs=1))
    by_hand = [np.linalg.norm(p.target.positions - p.start.positions, axis=-1).max() for p in pairs]
    assert errors["n_structures"] == 5 and errors["far"] == pytest.approx(np.mean(by_hand), rel=1e-6)
    mixed = losses.weighted_sum({"structures": (1.0, moved)})
    shown = ({"structures": batch} for batch in data.batches(packed, 2, epochs=1))
    assert training.evaluate(mixed, jnp.ones(()), shown) == {f"structures/{key}": x for key, x in errors.items()}


def test_what_the_host_knows_of_a_batch():
    frames = make.copper_frames(6)
    packed = data.pack(frames, data.plan(frames, make.MORSE.shells, 1))
    goal = training.objective(
        losses.label_loss(make.MORSE), lambda n: data.batches(packed, 4, start=n), sources=packed.sources
    )
    for drawn, batch in itertools.islice(goal.batches(0), data.n_batches(packed, 4)):
        assert drawn.structures == np.sum(batch.frame >= 0) and drawn.atoms == np.sum(batch.system.numbers > 0)
        rows, n_atoms = batch.system.numbers.shape
        widths = "/".join(map(str, batch.neighbors.capacities))
        assert drawn.shape == f"{rows} x {n_atoms} atoms, {widths} neighbours"
        assert goal.names(batch) == [packed.sources[k] for k in batch.frame.ravel() if k >= 0]
    assert len({drawn.program for drawn, _ in itertools.islice(goal.batches(0), 4)}) == 1
    moved = jax.tree.map(lambda x: 1.1 * x, make.MORSE.init())
    metrics = [goal.loss(moved, batch)[1] for _, batch in itertools.islice(goal.batches(0), 2)]
    assert goal.summarise([(None, m) for m in metrics], None) == losses.errors(training.add(metrics))
