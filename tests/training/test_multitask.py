"""Several data sets, a head each: who moves, in which order, what is measured, and that a run can be resumed."""

import csv
import itertools
from collections import Counter

import ase.io
import chex
import jax
import jax.numpy as jnp
import label_frames as make
import numpy as np
import optax
import pytest
from typer.testing import CliRunner

from lamjax import checkpoints, data, losses, training
from lamjax.cli import app
from lamjax.evaluation import errors as evaluation_errors
from lamjax.potential import Params, select
from lamjax.system import to_ase
from lamjax.training import engine, labels, sharding
from lamjax.training.config import parse
from lamjax.training.sharding import RowShare
from lamjax.training.slots import counts, draws, probabilities, sources, stream
from lamjax.training.state import per_head

CONFIG = """
model:
  elements: [Cu, O, Ti, V, Ru, Sn, Ir]
  descriptor: {type: dpa1, rcut: 3.0, sel: 16, neuron: [2, 4], axis_neuron: 2, tebd_dim: 2}  # compiles fast
  heads: [[copper, {neuron: [4, 4]}], [oxides, {neuron: [4, 4]}], [unused, {neuron: [4, 4]}]]
schedule: {start_lr: 1e-2, stop_lr: 1e-3, decay_steps: 2}
optimizer: {name: adamw, max_norm: 5.0, options: {weight_decay: 0.1}}
steps: 10
batch_size: 3
max_programs: 1
print_every: 5
validate_every: 5
save_every: 5
precision: float64
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Copper frames in a file, oxides in a folder of DeePMD's, and a config."""
    folder = tmp_path_factory.mktemp("tasks")
    frames = make.copper_frames(9, sizes=(1,))
    atoms = []
    for frame in frames:
        atoms.append(to_ase(frame.system))
        atoms[-1].info |= {"REF_energy": float(frame.labels.energy), "REF_virial": frame.labels.virial}
        atoms[-1].arrays["REF_forces"] = frame.labels.forces
    ase.io.write(folder / "copper.extxyz", atoms[:7])
    ase.io.write(folder / "held_out.extxyz", atoms[7:])
    oxides = make.FIXTURES / "data" / "oxide" / "mixed_6"
    (folder / "config.yaml").write_text(
        CONFIG
        + f"""
tasks:
  copper: {{train: [{folder}/copper.extxyz], validation: [{folder}/held_out.extxyz], probability: 0.4}}
  oxide:
    {{train: [{oxides}], head: oxides, probability: 0.6, batch_size: 2, loss: {{start_pref_v: 0.1, limit_pref_v: 1.0}}}}
output: {folder}/whole
"""
    )
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    """An uninterrupted run: its output folder and events."""
    return folder / "whole", list(engine.events(labels.prepare(parse(folder / "config.yaml"))))


@pytest.fixture(scope="module")
def fresh(folder):
    """A run that is ready to begin."""
    return labels.prepare(parse(folder / "config.yaml", [f"output={folder}/fresh"]))


JOINT = np.array([[0.2, 0.0, 0.1], [0.3, 0.1, 0.0], [0.0, 0.2, 0.1]])
GROUP = np.array([0, 0, 1])


@pytest.mark.parametrize("slots", [1, 3])
def test_draws_are_a_function_of_seed_and_step(slots):
    first = list(itertools.islice(draws(3, JOINT, GROUP, slots), 9000))
    for start in (1, 4095, 4096, 8190):
        assert list(itertools.islice(draws(3, JOINT, GROUP, slots, start), 100)) == first[start : start + 100]
    taken = np.zeros(JOINT.shape, int)
    for bucket, tasks in first[:8195]:
        for task in tasks:
            taken[task, bucket] += 1
    np.testing.assert_array_equal(counts(3, JOINT, GROUP, slots, 8195), taken)
    assert first != list(itertools.islice(draws(4, JOINT, GROUP, slots), 9000))


def test_a_task_and_a_bucket_are_drawn_by_their_probability_and_slots_by_that_of_their_group():
    n = 20_000
    drawn = list(itertools.islice(draws(0, JOINT, GROUP, 2), n))
    first = np.zeros(JOINT.shape)
    for bucket, (task, other) in drawn:
        first[task, bucket] += 1 / n
        assert GROUP[task] == GROUP[other] and JOINT[other, bucket] > 0
    np.testing.assert_allclose(first, JOINT, atol=0.015)
    second = [tasks[1] for bucket, tasks in drawn if bucket == 0]  # of tasks 0 and 1, with 0.2 to 0.3
    assert np.mean(second) == pytest.approx(0.6, abs=0.02)


def test_batches_go_on_at_any_step_and_show_every_frame(fresh):
    def shown(start, n, **options):
        steps = itertools.islice(stream(fresh.data.tasks, fresh.data.groups, 5, start=start, **options), n)
        return [(facts.tasks, slots[facts.group].batch.frame.tolist()) for facts, slots in steps]

    seen = shown(0, 60)
    assert shown(23, 37) == seen[23:]
    frames = Counter(k for (task,), ((row,),) in seen if task == 1 for k in row)
    assert frames.keys() == set(range(28)) and max(frames.values()) - min(frames.values()) <= 1
    assert fresh.data.tasks[0].probability == 0.4 and fresh.data.tasks[1].batch_size == 2
    np.testing.assert_allclose(probabilities(fresh.data.tasks).sum(axis=1), [0.4, 0.6])
    whole = shown(0, 9, share=RowShare(4))
    parts = [shown(0, 9, share=RowShare(4, (k, 2))) for k in range(2)]
    assert whole == [(t, [a + b for a, b in zip(p, q, strict=True)]) for (t, p), (_, q) in zip(*parts, strict=True)]


def test_only_the_drawn_head_and_the_descriptor_move(fresh):
    names = ("copper", "oxides")
    before, drawn = jax.device_get(fresh.state), Counter()
    steps = list(itertools.islice(stream(fresh.data.tasks, fresh.data.groups, 0), 8))
    batches = [slots for _, slots in steps]
    start = jax.tree.map(jnp.array, fresh.state)
    for (facts, _), (state, metrics) in zip(
        steps, training.fit(fresh.objective.loss, start, fresh.optimizer, batches), strict=True
    ):
        drawn[facts.tasks] += 1
        after = jax.device_get(state)
        for head in ("copper", "oxides", "unused"):
            moved = not same(before.params.heads[head]["layers"], after.params.heads[head]["layers"])
            stepped = not same(moments(before, head), moments(after, head))
            assert moved == stepped == (head == names[facts.tasks[0]])
        assert not same(before.params.descriptor, after.params.descriptor)
        assert float(metrics["grad_norm"]) > 0
        before = after
    assert len(drawn) == 2


def same(a, b) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def moments(state, head: str):
    """The optimiser's state of one head."""
    _, (parts, _) = state.opt_state
    return parts.heads[head]


def test_each_head_is_optimised_as_if_the_others_were_not_there():
    rate = training.schedule(training.ScheduleConfig(start_lr=0.1, stop_lr=0.01, decay_steps=2), 12)
    config = training.OptimizerConfig("adamw", options={"weight_decay": 0.02})
    both = training.optimizer(config, rate, by_head=True)
    params = Params(jnp.ones(2), {"a": {"w": jnp.ones(3)}, "b": {"w": jnp.full(3, 2.0)}})
    state, rng = both.init(params), np.random.default_rng(0)
    alone = {name: (head, optax.adamw(1.0, weight_decay=0.02)) for name, head in params.heads.items()}
    alone = {name: (head, own, own.init(head)) for name, (head, own) in alone.items()}
    for t in range(12):
        name = "ab"[int(t in (4, 5, 9))]
        g = {"w": jnp.asarray(rng.normal(size=3))}
        gradient = jax.tree.map(jnp.zeros_like, params)._replace(descriptor=jnp.ones(2))
        gradient.heads[name] = g
        updates, state = both.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        head, own, own_state = alone[name]
        updates, own_state = own.update(g, own_state, head)
        head = optax.apply_updates(head, jax.tree.map(lambda u, t=t: u * rate(t), updates))
        alone[name] = (head, own, own_state)
        for other, (expected, *_) in alone.items():
            np.testing.assert_allclose(params.heads[other]["w"], expected["w"], rtol=1e-12)


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_one_head_alone_learns_as_without_tasks(name):
    rate = training.schedule(training.ScheduleConfig(), 10)
    one, other = (training.optimizer(training.OptimizerConfig(name), rate, by_head=b) for b in (False, True))
    params = Params(jnp.ones((2, 3)), {"a": jnp.ones(3)})
    gradient = Params(jnp.arange(1.0, 7.0).reshape(2, 3), {"a": jnp.arange(1.0, 4.0)})
    ours, theirs = (o.update(gradient, o.init(params), params)[0] for o in (one, other))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), ours, theirs)
    assert per_head(optax.sgd(1.0)).init(params).heads.keys() == {"a"}


def test_statistics_are_pooled_and_biases_each_head_s_own(fresh):
    frames = [frame for task in fresh.data.tasks for frame in task.frames]
    pooled = data.environment_statistics(fresh.potential, frames)
    statistics = fresh.state.params.descriptor["repinit"]["statistics"]
    np.testing.assert_allclose(statistics["stddev"], pooled["repinit"]["stddev"], rtol=1e-12)
    for task in fresh.data.tasks:
        head = fresh.state.params.heads[task.potential.head]
        expected = data.energy_bias(fresh.potential, task.frames).energies
        np.testing.assert_allclose(head["statistics"]["out_bias"], expected, rtol=1e-12)
    np.testing.assert_array_equal(fresh.state.params.heads["unused"]["statistics"]["out_bias"], 0)


def test_a_run_measures_every_task(whole):
    output, events = whole
    compiled = [event for event in events if isinstance(event, engine.Compiled)]
    assert [event.group for event in compiled] == [""] * len(compiled)  # one form of head: no program is a task's own
    curve = rows(output)
    assert [row["step"] for row in curve] == ["5", "10"]
    joint = np.array([[0.4], [0.6]])
    drawn = [tasks[0] for _, tasks in itertools.islice(draws(0, joint, np.zeros(2, int)), 10)]
    assert set(drawn[5:]) < set(drawn)  # so that one row has a task that was not drawn, and another one
    for k, row in enumerate(curve):
        for name, errors in (("copper", ("rmse_e", "mae_f")), ("oxide", ("rmse_e", "rmse_v"))):
            there = ("copper", "oxide").index(name) in drawn[5 * k : 5 * k + 5]
            assert all(
                (float(row[f"{e}_train:{name}"]) > 0) if there else row[f"{e}_train:{name}"] == "" for e in errors
            )
        assert float(row["rmse_v_validation:copper"]) > 0 and not row["rmse_f_validation:oxide"]
    potential, params = checkpoints.load(output / "model.lamjax", dtype=np.float64)
    assert potential.config.head_names == ("copper", "oxides", "unused") and potential.head is None
    held_out = data.read(output.parent / "held_out.extxyz")
    packed = data.pack(held_out, data.plan(held_out, potential.shells), np.float64)
    loss = losses.label_loss(select(potential, "copper"))
    result = training.evaluate(loss, params, data.batches(packed, 2, epochs=1))
    assert float(curve[-1]["rmse_f_validation:copper"]) == pytest.approx(result["rmse_f"], rel=1e-9)


def test_what_is_announced_is_compiled_and_nothing_else(folder, tmp_path, monkeypatch):
    changes = [f"output={tmp_path}", "max_programs=3", "steps=20", "plots=false", "validate_every=10"]
    run = labels.prepare(parse(folder / "config.yaml", changes))
    announced = run.data.n_programs + run.data.n_measured
    chex.clear_trace_counter()
    counted = chex.assert_max_traces(n=announced)(run.objective.loss)
    monkeypatch.setattr(labels, "run_loss", lambda *tasks: counted)
    run = labels.prepare(run.config)
    events = [event for event in engine.events(run) if isinstance(event, engine.Compiled)]
    assert len(events) <= run.data.n_programs <= 3


def rows(output):
    with (output / "lcurve.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_an_interrupted_run_goes_on_bit_for_bit(folder, whole, tmp_path):
    config = parse(folder / "config.yaml", [f"output={tmp_path / 'part'}"])
    for event in engine.events(labels.prepare(config)):
        if isinstance(event, engine.Saved):
            break
    list(engine.events(labels.prepare(config, resume=True)))
    one, other = (checkpoints.read(path / "model.lamjax").params for path in (whole[0], tmp_path / "part"))
    assert same(one, other)
    times = ("seconds", "structures_per_s", "atoms_per_s", "wait_fraction")
    a, b = (
        [{k: v for k, v in row.items() if k not in times} for row in rows(p)] for p in (whole[0], tmp_path / "part")
    )
    assert a == b


def test_the_command_says_which_task_is_meant(folder, whole, tmp_path):
    model = f"base={whole[0] / 'model.lamjax'}"
    arguments = ["--set", "model=null", "--set", model, "--set", f"output={tmp_path}/tuned", "--set", "steps=2"]
    result = CliRunner().invoke(app, ["train", str(folder / "config.yaml"), *arguments, "--set", "print_every=1"])
    assert result.exit_code == 0, result.output
    for text in ("copper train", "oxide train", "validation ┃", "validation copper E ", "(60 %", "train oxide E "):
        assert text in " ".join(result.output.split()), text


def test_fine_tuning_refits_the_bias_of_every_head(folder, whole, tmp_path):
    base = f"base={whole[0] / 'model.lamjax'}"
    run = labels.prepare(parse(folder / "config.yaml", ["model=null", base, f"output={tmp_path}"]))
    for task in run.data.tasks:
        predicted = evaluation_errors.predictions(task.potential, run.state.params, task.train, 3)
        left = [float(p.energy) - float(f.labels.energy) for p, f in zip(predicted, task.frames, strict=True)]
        assert abs(np.mean(left)) < 1e-6


def test_a_bad_frame_is_named_with_its_task(fresh):
    def spoiled():
        for facts, tagged in stream(fresh.data.tasks, fresh.data.groups, 0):
            slots = sharding.put_batch(tagged[facts.group], fresh.layout)
            labels = slots.batch.labels._replace(
                energy=slots.batch.labels.energy * (np.nan if facts.tasks == (1,) else 1)
            )
            yield {facts.group: slots._replace(batch=slots.batch._replace(labels=labels))}

    with pytest.raises(training.NonFiniteError, match=r"mixed_6/set.000 frame \d+, mixed_6/set.000 frame \d+\]"):
        start = jax.tree.map(jnp.array, fresh.state)
        named = sources(fresh.data.tasks, fresh.data.groups)
        list(training.fit(fresh.objective.loss, start, fresh.optimizer, spoiled(), sources=named))


WRONG = {
    "train=[a.extxyz]": "With `tasks`, give train, validation and head in each task",
    "head=copper": "With `tasks`, give train, validation and head in each task",
    "tasks.copper.train=[]": r"`tasks.copper.train` names no file",
    "tasks.copper.probability=null": r"Give a probability above 0 to all tasks or to none, got \[None, 0.6\]",
    "tasks.copper.probability=0": "Give a probability above 0",
    "tasks.copper.weight=1": "tasks.copper.weight",
    "tasks=null": "tasks: expected keys and values, got None",
    "tasks={}": "`train` names no file",
}


@pytest.mark.parametrize("change", list(WRONG))
def test_wrong_tasks_are_refused(folder, change):
    with pytest.raises(ValueError, match=WRONG[change]):
        parse(folder / "config.yaml", [change])


def test_a_head_that_is_not_there_is_named(folder, tmp_path):
    config = parse(folder / "config.yaml", ["tasks.oxide.head=oxide", f"output={tmp_path}"])
    with pytest.raises(ValueError, match="tasks.oxide: the model has no head 'oxide'; it has copper, oxides, unused"):
        labels.prepare(config)


def test_without_probabilities_frames_decide(folder, tmp_path):
    changes = ["tasks.copper.probability=null", "tasks.oxide.probability=null", f"output={tmp_path}"]
    run = labels.prepare(parse(folder / "config.yaml", changes))
    np.testing.assert_allclose([task.probability for task in run.data.tasks], [7 / 35, 28 / 35])
