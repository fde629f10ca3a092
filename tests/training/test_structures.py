"""Fine-tuning on structures: what is learned, measured, written, resumed and refused."""

import csv
import itertools
import json
import warnings
from pathlib import Path

import ase
import ase.io
import cluster_pairs as clusters
import jax
import label_frames
import numpy as np
import pytest
import yaml
from pages import read_page
from scipy.spatial.distance import pdist

import lamjax
from lamjax import checkpoints, data, losses, relaxation
from lamjax.cli import report
from lamjax.data.pairs import pair_name
from lamjax.evaluation.structures import (
    Judgement,
    LabelledSets,
    compare,
    read_ends,
    read_structures,
    summary,
    with_ends,
    write_ends,
)
from lamjax.neighbors import Shell
from lamjax.training import NonFiniteError, engine, evaluate, records, schedule, structures
from lamjax.training.config import schema, to_json, validate
from lamjax.training.structures import StructureTuneConfig, read_config
from lamjax.training.structures_config import TEMPLATE, complete, judge_of, objective_of
from lamjax.training.structures_data import hold_out, is_at_target, noisy_batches, read_sets, wider

FORCE = {"type": "force"}  # compiles in a fraction of the time of a relaxation


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base model that makes bonds of 2.6 Å, its labels, and pairs that end at 2.45 Å."""
    folder = tmp_path_factory.mktemp("structures")
    clusters.write_labels(folder / "labels.extxyz", 40)
    clusters.write_base(folder / "base.lamjax", folder / "labels.extxyz")
    clusters.write_pairs(folder / "train.extxyz", 6)
    clusters.write_pairs(folder / "test.extxyz", 3, seed=7)
    return folder


def config_of(folder: Path, output: str, **changes) -> StructureTuneConfig:
    content = {"base": "base.lamjax", "pairs": ["train.extxyz"], "validation": ["test.extxyz"]} | changes
    for key in ("pairs", "validation"):
        content[key] = [str(folder / name) for name in content[key]]
    content |= {"base": str(folder / content["base"]), "output": str(folder / output)}
    return read_config(None, {"batch_size": 3, "max_programs": 1, "precision": "float64"} | content)


def run(config: StructureTuneConfig, resume: bool = False) -> list:
    return list(engine.events(structures.prepare(config, resume)))


def judged_in(events: list) -> list:
    return [event for event in events if isinstance(event, engine.RunRecord) and event.validation]


@pytest.fixture(scope="module")
def tuned(folder):
    """Backpropagation through the relaxation, labels replayed, the minimiser learned too."""
    config = config_of(
        folder,
        "tuned",
        objective={"relax": {"adjoint": {"type": "unrolled", "steps": 50}, "fmax": 1e-3}},
        learn_minimiser=True,
        replay={"files": [str(folder / "labels.extxyz")], "weight": 1e-3},
        schedule={"start_lr": 2e-3},
        epochs=8,
        validate_every=2,
    )
    return config, run(config)


def test_structures_become_better_where_they_must(tuned):
    config, events = tuned
    epochs = [records.means(event.rows, structures.COUNTS)[0] for event in events if isinstance(event, engine.Epoch)]
    judged = judged_in(events)
    assert [event.step for event in judged] == [0, 4, 8, 12, 16]
    assert epochs[-1]["dq_mean"] < 0.7 * epochs[0]["dq_mean"]
    first, last = judged[0].validation, judged[-1].validation
    assert last["dq_median"] < 0.7 * first["dq_median"]
    assert last["improved"] == last["converged"] == 1
    assert first["improved"] == 0


def test_what_it_cost_elsewhere_is_measured(tuned, folder):
    first, last = (judged_in(tuned[1])[k].validation for k in (0, -1))
    measured = {f"{what}_rmse_{kind}" for what in ("heldout", "replay") for kind in "ef"}
    assert {key for key in first if "_rmse_" in key} == measured
    assert {key for key in structures.validations(folder / "tuned")[0].errors if "_rmse_" in key} == measured
    assert last["replay_rmse_f"] > first["replay_rmse_f"]  # what was learned contradicts the labels
    assert last["heldout_rmse_f"] < first["heldout_rmse_f"]
    potential, params = checkpoints.load(folder / "base.lamjax", dtype=np.float64)
    frames = data.read(folder / "labels.extxyz")
    packed = data.pack(frames, data.plan(frames, potential.shells, 1))
    errors = evaluate(losses.label_loss(potential), params, data.batches(packed, 8, seed=None, epochs=1))
    assert first["replay_rmse_f"] == pytest.approx(errors["rmse_f"], rel=1e-9)


def test_errors_of_virials_are_measured_where_there_are_labels():
    frames = label_frames.copper_frames(6)
    bare = [frame._replace(labels=frame.labels._replace(weights=np.array([1.0, 1.0, 0.0]))) for frame in frames]
    morse, params = label_frames.MORSE, jax.tree.map(lambda x: 1.03 * x, label_frames.MORSE.init())
    labels = LabelledSets(
        {"all": frames, "part": [*bare[:5], frames[5]], "none": bare},
        dict.fromkeys(("all", "part", "none"), morse),
        "float64",
    )
    errors = labels.errors(params)
    assert (
        set(errors) == {"all_rmse_f", "all_rmse_v", "part_rmse_f", "part_rmse_v", "none_rmse_f"} < set(labels.columns)
    )
    for name, some in (("all", frames), ("part", frames[5:])):
        packed = data.pack(some, data.plan(some, morse.shells, 1), "float64")
        expected = evaluate(
            losses.label_loss(morse, losses.LabelLossConfig(start_pref_v=1.0)),
            params,
            data.batches(packed, 6, seed=None, epochs=1),
        )
        assert errors[f"{name}_rmse_v"] == pytest.approx(expected["rmse_v"], rel=1e-9) and expected["rmse_v"] > 1e-3


def test_a_summary_is_of_all_structures_the_failed_ones_too():
    before = Judgement(*np.full((5, 5), 2.0), np.full(5, 9), np.ones(5, bool), np.zeros(5, bool))
    judgement = Judgement(
        dq=np.array([1.0, 2.0, 0.25, 7.0, 4.0]),
        rmsd=np.array([0.5, 0.1, 0.2, 0.9, 0.4]),
        largest=np.array([0.3, 0.5, 0.1, np.inf, 0.49]),
        strain=np.array([0.01, 0.05, 0.02, 0.09, 0.03]),
        volume=np.array([-0.08, 0.01, -0.02, 0.03, -0.06]),
        n_steps=np.array([10, 50, 20, 400, 30]),
        converged=np.array([True, True, True, False, True]),
        failed=np.array([False, False, False, True, False]),
    )
    numbers = summary(judgement, before, basin=0.5)._asdict()
    assert numbers == pytest.approx(
        {"dq_median": 2.0, "dq_mean": 2.85, "dq_q1": 1.0, "dq_q3": 4.0}
        | {"rmsd_median": 0.4, "rmsd_mean": 0.42, "rmsd_q1": 0.2, "rmsd_q3": 0.5}
        | {"strain_median": 0.03, "volume_median": 0.03, "in_basin": 0.6, "improved": 0.4}
        | {"converged": 0.8, "failed": 0.2, "n_steps": 30}
    )


def test_validation_is_a_relaxation_and_its_error(tuned, folder):
    potential, params = checkpoints.load(folder / "tuned" / "best.lamjax", dtype=np.float64)
    pairs = data.read_pairs(folder / "test.extxyz")
    rule = relaxation.RelaxConfig(fmax=0.01, max_steps=1000)
    relaxed = relaxation.relax_structures(potential, params, [p.start for p in pairs], rule)
    error = jax.jit(losses.structure_error)
    by_hand = [float(error(r.system, p.target).dq) for r, p in zip(relaxed, pairs, strict=True)]
    after = read_structures(folder / "tuned" / "structures.csv", "after")
    np.testing.assert_allclose(after.dq, by_hand, rtol=1e-6)
    assert list(after.n_steps) == [int(r.n_steps) for r in relaxed]
    best = min(structures.validations(folder / "tuned"), key=lambda judged: judged.errors["dq_median"])
    assert best.best and best.errors["dq_median"] == np.median(after.dq)
    assert best.errors["dq_mean"] == pytest.approx(np.mean(by_hand), rel=1e-6)


def write_alone(path: Path, n: int) -> None:
    """Relaxed clusters without a start, each of another size."""
    ase.io.write(path, [clusters.labelled((clusters.TARGET + 1e-3 * k) * clusters.TETRAHEDRON, 2.45) for k in range(n)])


def test_held_out_starts_that_are_their_targets_say_nothing(folder):
    frames = ase.io.read(folder / "train.extxyz", ":")
    for k, start in enumerate(frames[::2]):  # each start becomes its target
        start.positions = frames[2 * k + 1].positions
    ase.io.write(folder / "ends.extxyz", frames)
    with pytest.raises(ValueError, match="All 6 held-out starts are their targets, .* Relaxation .*force or newton"):
        structures.prepare(config_of(folder, "bad", pairs=["test.extxyz"], validation=["ends.extxyz"]))
    files = {"pairs": ["train.extxyz"], "validation": ["test.extxyz", "ends.extxyz"]}
    with pytest.warns(UserWarning, match="Left out 6 of 9 held-out pairs whose start is their target"):
        sets = read_sets(config_of(folder, "bad", **files), checkpoints.load(folder / "base.lamjax")[0], None)
    assert [pair_name(pair) for pair in sets.validation] == ["c7-0", "c7-1", "c7-2"]


def test_relaxed_structures_alone_are_enough_for_an_objective_at_the_target(folder):
    write_alone(folder / "alone.extxyz", 5)
    files = {"pairs": ["alone.extxyz"], "validation": []}
    with pytest.raises(ValueError, match="nothing says where the structure relaxes to"):
        structures.prepare(config_of(folder, "bad", **files))
    prepared = structures.prepare(config_of(folder, "alone", objective=FORCE, hold_out=0.2, **files))
    assert len(prepared.data.sets.train) == 4 and is_at_target(prepared.data.sets.validation[0])
    assert len(prepared.data.labels.sets["heldout"][1]) == 1  # its forces are measured too
    zeros = np.zeros(2)
    judgement = Judgement(zeros, zeros, np.array([0.1, 0.9]), zeros, zeros, zeros, zeros > 0, zeros > 0)
    assert np.isnan(summary(judgement, judgement, 0.5, np.array([False, False])).in_basin)
    assert summary(judgement, judgement, 0.5, np.array([False, True])).in_basin == 0
    assert summary(judgement, judgement, 0.5).in_basin == 0.5


def test_a_trajectory_of_ase_is_a_relaxation(folder):
    """No relax_id: one file is one relaxation, and all its labelled steps are measured where it is held out."""
    frames = ase.io.read(folder / "train.extxyz", ":")
    for k in range(3):
        ase.io.write(folder / f"{k}.traj", [clusters.labelled(a.positions, 2.45) for a in frames[2 * k : 2 * k + 2]])
    files = {"pairs": ["0.traj", "1.traj"], "validation": ["2.traj"]}
    prepared = structures.prepare(config_of(folder, "bad", objective=FORCE, **files))
    assert [pair_name(pair) for pair in prepared.data.sets.train] == [
        str(folder / "0.traj"),
        str(folder / "1.traj"),
    ]
    assert len(prepared.data.sets.frames["heldout"]) == 2


def test_a_run_leaves_everything_behind(tuned, folder):
    output = folder / "tuned"
    history = records.read(output / "history.csv")
    assert [int(row["step"]) for row in history] == list(range(1, 17))
    assert {"loss", "grad_norm", "dq_mean", "n_dropped", "replay_rmse_f"} <= history[0].keys()
    assert [int(row["epoch"]) for row in history] == [1 + k // 2 for k in range(16)]  # six pairs in batches of three
    rate = schedule(tuned[0].schedule, 16)
    np.testing.assert_allclose([float(row["lr"]) for row in history], [rate(k) for k in range(16)], rtol=1e-6)
    with (output / "structures.csv").open() as file:
        assert [row["structure"] for row in csv.DictReader(file)] == ["c7-0", "c7-1", "c7-2"]
    assert (output / "structures.png").read_bytes().startswith(b"\x89PNG")
    report.write(output)
    page = read_page(output / "report.html")
    assert {"Result", "Curves", "Structures before and after", "Versions"} <= set(page.headings) and page.images
    shown = page.structures["pairs"]
    assert [[view["label"].split(":")[0] for view in views] for views in shown] == [
        ["before training", "after", "target"]
    ] * 3
    edges = [[np.mean(pdist(view["positions"])) for view in views] for views in shown]  # of tetrahedra
    for before, after, target in edges:
        assert abs(target - clusters.TARGET) < 0.01 and abs(after - target) < 0.7 * abs(before - target)
    assert json.loads((output / "facts.json").read_text())["data"]["train"]["pairs"] == 6
    stored = json.loads((output / "config.json").read_text())
    assert validate(stored, kind=StructureTuneConfig) == tuned[0]
    best, last = (checkpoints.read(output / name).card for name in ("best.lamjax", "model.lamjax"))
    assert last["steps"] == 16 and best["dq_median"] <= last["dq_median"]


def test_relaxed_structures_are_kept_beside_their_numbers(tuned, folder):
    """Errors of the kept structures, by hand, are those of the table."""
    path, pairs = folder / "tuned" / "structures.extxyz", data.read_pairs(folder / "test.extxyz")
    kept = read_ends(path)
    assert list(kept) == [0, 1, 2] and all(list(one) == ["start", "before", "after", "target"] for one in kept.values())
    for stage in ("before", "after"):
        table = read_structures(folder / "tuned" / "structures.csv", stage)
        systems = [lamjax.from_ase(kept[k][stage]) for k in kept]
        np.testing.assert_allclose(compare(systems, pairs).dq, table.dq, rtol=1e-5)
        again = with_ends(table, path, stage)
        np.testing.assert_array_equal(again.ends[2].positions, kept[2][stage].positions)
    for k, pair in enumerate(pairs):
        np.testing.assert_allclose(kept[k]["start"].positions, pair.start.positions, atol=1e-7)


def test_targets_are_kept_in_the_images_next_to_their_starts(tmp_path):
    """A target that its file holds in other images of another cell; a relaxation that failed; held atoms."""
    start = lamjax.from_ase(ase.Atoms("Cu2", [[0, 0, 0], [1.8, 1.8, 0.1]], cell=3.6 * np.eye(3), pbc=True), np.float64)
    cell = 3.6 * np.eye(3) + 0.05
    ends = np.array([[0.01, 0.0, 0.0], [0.52, 0.49, 0.05]])
    target = start._replace(positions=(ends + [[1, 0, -2], [0, -3, 1]]) @ cell, cell=cell)
    fixed = np.array([[True] * 3, [False] * 3])
    pair = data.Pair(start, target, fixed, None, "somewhere", {"pair_id": "007"})
    failed = Judgement(*np.full((5, 1), np.inf), *np.zeros((3, 1), int), ends=[None])
    write_ends(tmp_path / "x.extxyz", [pair], failed, failed._replace(ends=[target]))
    (kept,) = read_ends(tmp_path / "x.extxyz").values()
    assert list(kept) == ["start", "after", "target"] and kept["start"].constraints[0].index.tolist() == [0]
    np.testing.assert_allclose(kept["target"].positions, ends @ cell, atol=1e-7)
    np.testing.assert_allclose(kept["target"].cell, cell, atol=1e-7)
    assert read_ends(tmp_path / "none.extxyz") == {} and with_ends(failed, tmp_path / "none.extxyz", "after").ends == []


def test_the_minimiser_learns(tuned, folder):
    history = records.read(folder / "tuned" / "history.csv")
    values = [float(row["minimiser/dt_start"]) for row in history]
    assert len(set(values)) == len(values) and 0.05 < min(values) < max(values) < 0.2
    numbers = json.loads((folder / "tuned" / "minimiser.json").read_text())
    assert numbers["dt_start"] == pytest.approx(values[-1]) and numbers.keys() == {"dt_start", "alpha_start"}


def test_noise_moves_free_atoms_of_starts_anew_every_epoch(folder):
    def starts(noise: float, epoch: int):
        """Positions of the starts in the order of the pairs; a component of the first one is fixed."""
        config = config_of(folder, "noise", noise=noise)
        packed = structures.prepare(config).data.packed
        packed.rows[0][0].fixed[0, 1] = True
        shown = itertools.islice(noisy_batches(packed, config, 2 * epoch), 2)
        rows = {int(n): x for b in shown for n, x in zip(b.number, b.start.positions, strict=True)}
        return np.stack([rows[n] for n in sorted(rows)])

    plain, first, later = starts(0.0, 0), starts(0.05, 0), starts(0.05, 1)
    assert np.std(first - plain) == pytest.approx(0.05, rel=0.3)
    for moved in (first - plain, later - first):
        assert moved[0, 0, 1] == 0 and np.sum(moved == 0) == 1
    np.testing.assert_array_equal(first, starts(0.05, 0))
    with pytest.raises(ValueError, match="noise moves starts; the objective 'force' begins at the target"):
        config_of(folder, "noise", noise=0.05, objective=FORCE)


def test_resumed_equals_uninterrupted(folder):
    # at step 3 the second of two batches of an epoch is still to come
    common = {"objective": FORCE, "epochs": 3, "save_every": 3, "ema_decay": 0.5, "validate_every": 2}
    common |= {"replay": {"files": [str(folder / "labels.extxyz")], "batch_size": 5}}
    run(config_of(folder, "whole", **common))
    begun = engine.events(structures.prepare(config_of(folder, "killed", **common)))
    for event in begun:
        if isinstance(event, engine.Saved) and event.path.name == "3":
            begun.close()
    with pytest.raises(ValueError, match=r"holds the states of a run \(up to step 3\). Add --resume"):
        structures.prepare(config_of(folder, "killed", **common))
    with (folder / "killed" / "history.csv").open("a") as file:  # a step whose state was never written
        file.write((folder / "killed" / "history.csv").read_text().splitlines()[-1].replace("3,", "4,", 1) + "\n")
    run(config_of(folder, "killed", **common), resume=True)
    for name in ("model.lamjax", "best.lamjax"):
        one, other = (checkpoints.read(folder / run / name).params for run in ("whole", "killed"))
        assert jax.tree.all(jax.tree.map(np.array_equal, one, other)), name
    for name in ("history.csv", "validation.csv", "structures.csv", "structures.extxyz"):
        assert (folder / "whole" / name).read_text() == (folder / "killed" / name).read_text()
    again = run(config_of(folder, "whole", **common), resume=True)  # it knows that it is over
    assert {type(event) for event in again} == {engine.Saved}
    with pytest.raises(ValueError, match="was begun with another config: epochs: 3 -> 5"):
        structures.prepare(config_of(folder, "whole", **common | {"epochs": 5}), resume=True)


def test_the_base_is_kept_where_nothing_is_better_and_the_run_ends(folder):
    # labels of 2.6 Å alone, at so high a rate that everything gets worse
    config = config_of(folder, "worse", objective=FORCE, schedule={"start_lr": 1.0}, epochs=9, patience=2)
    events = run(config)
    (stopped,) = [event for event in events if isinstance(event, engine.Stopped)]
    assert (stopped.step, stopped.best_step) == (4, 0)
    base, best = (checkpoints.read(folder / name).params for name in ("base.lamjax", "worse/best.lamjax"))
    assert jax.tree.all(jax.tree.map(np.array_equal, base, best))
    assert structures.validations(folder / "worse")[0].best


def test_a_loss_that_is_not_finite_stops_and_names_the_structures(folder):
    frames = ase.io.read(folder / "labels.extxyz", ":3")
    for atoms in frames:
        atoms.calc.results["forces"] *= 1e148
    ase.io.write(folder / "huge.extxyz", frames)
    replay = {"files": [str(folder / "huge.extxyz")], "batch_size": 3, "bias": "keep", "weight": 1e20}
    prepared = structures.prepare(config_of(folder, "huge", objective=FORCE, replay=replay))
    with pytest.raises(NonFiniteError, match=r"not finite for the batch \[c1-\d, c1-\d, c1-\d, huge.extxyz frame"):
        list(engine.events(prepared))
    assert [int(path.name) for path in (folder / "huge" / "states").iterdir() if path.name.isdigit()] == [0]


def test_bad_pairs_are_named_and_the_rest_goes_on(folder):
    frames = ase.io.read(folder / "train.extxyz", ":")
    gold = ase.Atoms("Cu3Au", frames[1].positions)
    gold.info = {"relax_id": "gold", "step": 0, "n_steps": 2}
    other = gold.copy()
    other.info["step"] = 1
    ase.io.write(folder / "bad.extxyz", [*frames, frames[0], gold, other])  # c1-0 has step 0 twice
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepared = structures.prepare(config_of(folder, "bad", pairs=["bad.extxyz"], objective=FORCE))
    text = "\n".join(str(warning.message) for warning in caught)
    assert "Relaxation c1-0" in text and "has step 0 twice" in text
    assert "Left out 1 of 6 pairs with elements that the model does not know (Cu):" in text
    assert "Relaxation gold" in text and "Au" in text
    assert len(prepared.data.sets.train) == 5
    with pytest.raises(ValueError, match="6 pairs are trained on and held out, the first Relaxation c1-0"):
        structures.prepare(config_of(folder, "bad", validation=["train.extxyz"]))


def test_whole_groups_are_held_out(folder):
    pairs = data.read_pairs(folder / "train.extxyz")
    train, held_out = hold_out(pairs, 0.1, "family", seed=0)
    families = [{pair.info["family"] for pair in part} for part in (train, held_out)]
    assert len(train) == len(held_out) == 3 and not families[0] & families[1]
    train, held_out = hold_out(pairs, 0.3, None, seed=0)
    assert len(held_out) == 2 and len(train) == 4
    assert [p.source for p in held_out] == [p.source for p in hold_out(pairs, 0.3, None, seed=0)[1]]
    with pytest.raises(ValueError, match="no 'host' in its info; it has family"):
        hold_out(pairs, 0.1, "host", 0)
    with pytest.raises(ValueError, match="only one value of 'n_steps'"):
        hold_out(pairs, 0.1, "n_steps", 0)


RELAXED = {
    "until_converged": {"adjoint": {"type": "until_converged", "checkpoints": 4}},
    "implicit": {"adjoint": {"type": "implicit"}},
    "hybrid": {"adjoint": {"type": "hybrid"}, "minimiser": {"type": "gradient_flow", "additive": True}},
}


@pytest.mark.parametrize("name", [*RELAXED, "newton"])
def test_every_objective_has_a_gradient(folder, name):
    # traced only: to compile them takes longer than all the rest; float32 with positions in float64
    objective = {"relax": RELAXED[name]} if name in RELAXED else {"type": name}
    changes = {"precision": "float32", "variable_cell": name != "hybrid", "learn_minimiser": name == "hybrid"}
    prepared = structures.prepare(config_of(folder, "traced", objective=objective, **changes))
    _, batch = next(prepared.objective.batches(0))
    params = prepared.state.params
    gradient = jax.eval_shape(jax.grad(lambda params: prepared.objective.loss(params, batch)[0]), params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), gradient) == jax.tree.map(lambda x: (x.shape, x.dtype), params)


def test_arrays_that_were_too_narrow_grow(folder):
    config = config_of(folder, "narrow")
    pairs = data.read_pairs(folder / "train.extxyz")
    shells = (Shell(5.0),)
    narrow = data.pack_pairs(pairs, shells, config.max_programs)
    order = [batch.number.tolist() for batch in itertools.islice(noisy_batches(narrow, config, 1), 3)]
    wide = wider(narrow, shells)
    assert [one.shapes[0].capacities for one in (narrow, wide)] == [(4,), (8,)]
    batches = list(itertools.islice(noisy_batches(wide, config, 1), 3))
    assert batches[0].neighbors.capacities == batches[0].target_neighbors.capacities == (8,)
    assert [batch.number.tolist() for batch in batches] == order
    np.testing.assert_array_equal(batches[0].neighbors.mask.sum(axis=-1), 3)


def test_arrays_grow_after_an_epoch_in_which_neighbours_were_missing(folder):
    goal = structures.prepare(config_of(folder, "grown", objective=FORCE)).objective
    counted = {"n_structures": 3.0}
    assert goal.per_epoch == 2 and goal.widen([counted, {**counted, "n_overflow": 0.0}]) is None
    for _ in range(4):
        goal, shapes = goal.widen([counted, {**counted, "n_overflow": 1.0}])
        assert goal.per_epoch == 2 and next(goal.batches(0))[0].shape.endswith(f"{shapes[0]} neighbours")
    assert goal.widen([{**counted, "n_overflow": 1.0}]) is None  # not for ever
    with pytest.raises(ValueError, match='Not one structure of the last epoch counted: {"n_dropped": 3'):
        goal.widen([{"n_structures": 0.0, "n_dropped": 3.0}])


def test_structures_of_different_sizes_are_compared_in_one_program(folder):
    pairs = data.read_pairs(folder / "train.extxyz")[:2]
    small = pairs[1]._replace(
        **{k: getattr(pairs[1], k)._replace(positions=getattr(pairs[1], k).positions[:3],
                                            numbers=getattr(pairs[1], k).numbers[:3]) for k in ("start", "target")},
        fixed=pairs[1].fixed[:3],
    )  # fmt: skip
    both = compare([pairs[0].start, small.start], [pairs[0], small])
    alone = [losses.structure_error(p.start, p.target, p.fixed) for p in (pairs[0], small)]
    for k, one in enumerate(alone):
        np.testing.assert_allclose([x[k] for x in both], one, rtol=1e-9, atol=1e-12)


def test_the_template_is_the_default():
    content = yaml.safe_load(TEMPLATE.replace("5.0e-4", "0.0005").replace("2.5e-5", "0.000025"))
    default = StructureTuneConfig("model.lamjax", ("relaxations.extxyz",))
    assert validate(complete(content), kind=StructureTuneConfig) == default
    assert content.keys() == json.loads(to_json(default)).keys()
    assert json.loads(schema(StructureTuneConfig))["properties"].keys() == content.keys()


WRONG = {
    "epoch: unknown key. Did you mean epochs": {"epoch": 3},
    r"objective.structure.relax.adjoint.Unrolled.stepz: unknown key. Did you mean steps\?$": {
        "objective": {"relax": {"adjoint": {"type": "unrolled", "stepz": 3}}}
    },
    r"adjoint.type: 'implicitly' is not supported; supported: .*implicit.*Did you mean implicit\?": {
        "objective": {"relax": {"adjoint": {"type": "implicitly"}}}
    },
    "objective: type must be structure, force or newton": {"objective": {"type": "forces"}},
    "replay.weight must be above 0": {"replay": {"files": ["a"], "weight": 0}},
    "set variable_cell, or leave their `cell` out": {"judge": {"cell": {}}},
    "the objective 'newton' relaxes nothing": {"objective": {"type": "newton"}, "learn_minimiser": True},
    "with the adjoint `implicit` no gradient reaches": {
        "objective": {"relax": {"adjoint": {"type": "implicit"}}},
        "learn_minimiser": True,
    },
    "Without `validation` files it must lie between 0 and 1": {"hold_out": 0.0},
    "patience must be at least 1": {"patience": 0},
}


@pytest.mark.parametrize("message", list(WRONG))
def test_what_cannot_be_is_refused(message):
    with pytest.raises(ValueError, match=message):
        read_config(None, {"base": "a", "pairs": ["b"]} | WRONG[message])


def test_partial_groups_keep_the_other_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "pairs: [b]\nbase: a\nvariable_cell: true\nobjective: {relax: {fmax: 0.03}}\njudge: {max_steps: 7}\n"
        "schedule: {start_lr: 1e-3}\nreplay: {files: [c], loss: {limit_pref_f: 7}}\n"
    )
    above = {"objective": {"type": "structure", "relax": {"adjoint": {"type": "hybrid", "window": 3}}}}
    config = read_config(tmp_path / "c.yaml", above, ["objective.relax.max_steps=9"])
    relax = objective_of(config).relax
    assert (relax.fmax, relax.max_steps, relax.adjoint.window) == (0.03, 9, 3)
    assert relax.cell == judge_of(config).cell == relaxation.CellConfig()
    assert (config.judge.fmax, config.judge.max_steps) == (0.01, 7)
    assert (config.schedule.type, config.schedule.stop_lr) == ("cosine", 5e-5)
    assert (config.replay.loss.start_pref_f, config.replay.loss.limit_pref_f) == (100, 7)
    assert config.replay.loss.prefactors[2] == (1, 1)  # stresses too
    plain = read_config(tmp_path / "c.yaml", {"objective": {"type": "newton"}})
    assert plain.objective == losses.NewtonTargetConfig() and objective_of(plain).cell == relaxation.CellConfig()
