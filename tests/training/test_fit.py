"""Steps, loops and states: Adam equals DeePMD-kit's, a killed run goes on bit for bit, bad batches stop it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import label_frames as make
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import lamjax
from lamjax import data, losses, pytree, training

SCRIPT = Path(__file__).parent / "killed_run.py"


@pytest.fixture(scope="module")
def morse():
    """Packed frames of two shapes, wrong parameters, loss and optimiser."""
    frames = make.copper_frames(7)
    packed = data.pack(frames, data.plan(frames, make.MORSE.shells, 2, batch_size=2))
    assert len(packed.buckets) == 2
    params = jax.tree.map(lambda x: 1.1 * x, make.MORSE.init())
    return packed, params, losses.label_loss(make.MORSE), optax.adam(1e-2)


def test_six_adam_steps_equal_deepmd():
    reference = json.loads((make.FIXTURES / "adam_reference.json").read_text())
    stored = dict(np.load(make.FIXTURES / "loss_reference.npz"))
    prefactors = json.loads((make.FIXTURES / "loss_reference.json").read_text())["prefactors"]
    potential, params = lamjax.load(make.FIXTURES / "loss_model.dp")
    frames = make.reference_frames()
    batch = next(data.batches(data.pack(frames, data.plan(frames, potential.shells, 1)), 3, seed=None))
    settings = {k: v for k, v in reference["learning_rate"].items() if k != "num_steps"}
    rate = training.schedule(training.ScheduleConfig(**settings), reference["learning_rate"]["num_steps"])
    optimizer = training.optimizer(training.OptimizerConfig(max_norm=5.0), rate)
    loss = losses.label_loss(potential, losses.LabelLossConfig(**prefactors))
    fitting = training.fit(
        loss,
        training.init(params, optimizer),
        optimizer,
        [batch] * 6,
        lr_ratio=lambda t: rate(t) / settings["start_lr"],
    )
    for expected, (state, metrics) in zip(reference["trajectory"], fitting, strict=True):
        np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-7)
        np.testing.assert_allclose(metrics["grad_norm"], expected["gradient_norm_before_clip"], rtol=1e-6)
        last = state.params
    flat = {pytree.path_name(p): x for p, x in jax.tree_util.tree_flatten_with_path(last)[0]}
    names = {
        "descriptor.type_embedding.embedding.embedding_net.layers.0.matrix": "descriptor/type_embedding/w",
        "descriptor.repformers.layers.0.linear1.matrix": "descriptor/repformer/layers/0/linear1/w",
        "fitting_net.filter_layers.networks.0.layers.0.bias": "heads/Default/layers/0/b",
        "descriptor.repinit.filter_layers.networks.0.layers.0.matrix": "descriptor/repinit/net/0/w",
    }
    for theirs, ours in names.items():
        expected = stored[f"param_after_6_adam_steps__atomic_model.{theirs}"]
        np.testing.assert_allclose(flat[ours], expected, rtol=0, atol=1e-7)
    before = {pytree.path_name(p): x for p, x in jax.tree_util.tree_flatten_with_path(params)[0]}
    statistics = [name for name in flat if "statistics" in name]
    assert len(statistics) == 9
    for name in statistics:
        np.testing.assert_array_equal(flat[name], before[name])


def test_no_program_outside_the_plan(morse):
    packed, params, loss, optimizer = morse
    chex.clear_trace_counter()
    counted = chex.assert_max_traces(n=len(packed.buckets))(lambda params, batch, ratio=1.0: loss(params, batch, ratio))
    steps = list(training.fit(counted, training.init(params, optimizer), optimizer, data.batches(packed, 2, epochs=3)))
    assert len(steps) == 3 * data.n_batches(packed, 2) and int(steps[-1][0].step) == len(steps)
    chex.clear_trace_counter()
    once = chex.assert_max_traces(n=len(packed.buckets))(lambda params, batch: loss(params, batch))
    results = [training.evaluate(once, params, data.batches(packed, 2, seed=s, epochs=1)) for s in (None, 1, 2)]
    for other in results[1:]:
        assert results[0] == pytest.approx(other, rel=1e-12)


def test_training_brings_the_potential_back(morse):
    packed, params, loss, optimizer = morse
    *_, (state, _) = training.fit(loss, training.init(params, optimizer), optimizer, data.batches(packed, 4, epochs=60))
    before = training.evaluate(loss, params, data.batches(packed, 4, epochs=1))
    after = training.evaluate(loss, state.params, data.batches(packed, 4, epochs=1))
    assert after["rmse_f"] < 0.1 * before["rmse_f"]


def test_frozen_and_statistics_are_never_changed(morse):
    packed, params, loss, _ = morse
    params = {"weights": params, "statistics": {"unused": jnp.ones(2)}}
    optimizer = optax.adamw(1e-2, weight_decay=0.1)

    def nested(params, batch, ratio=1.0):
        value, metrics = loss(params["weights"], batch, ratio)
        return value + jnp.sum(params["statistics"]["unused"]), metrics

    batches = data.batches(packed, 4, epochs=1)
    *_, (state, metrics) = training.fit(
        nested, training.init(params, optimizer), optimizer, batches, freeze=("weights/width",)
    )
    assert state.params["weights"]["width"] == params["weights"]["width"]
    assert state.params["weights"]["depth"] != params["weights"]["depth"]
    np.testing.assert_array_equal(state.params["statistics"]["unused"], 1)
    assert float(metrics["grad_norm"]) > 0


def test_a_bad_batch_stops_the_run_and_leaves_the_last_good_state(morse):
    packed, params, loss, optimizer = morse
    batches = list(data.batches(packed, 3, seed=0, epochs=1))
    labels = batches[1].labels
    batches[1] = batches[1]._replace(labels=labels._replace(energy=labels.energy + np.nan))
    frames = [packed.sources[k] for k in batches[1].frame.ravel() if k >= 0]
    start, kept = training.init(params, optimizer), []
    with pytest.raises(training.NonFiniteError) as caught:
        for state, _ in training.fit(loss, start, optimizer, batches, sources=packed.sources):
            kept.append((int(state.step), jax.device_get(state.params)))
    assert all(name in str(caught.value) for name in frames)
    assert [step for step, _ in kept] == [1, 1]
    assert kept[0][1] == kept[1][1] == jax.device_get(state.params)


def test_unknown_optimisers_and_options_are_refused():
    with pytest.raises(ValueError, match="optax has no optimiser 'adamm'"):
        training.optimizer(training.OptimizerConfig("adamm"), 1e-3)
    with pytest.raises(ValueError, match="does not take these options"):
        training.optimizer(training.OptimizerConfig("adam", options={"wheight": 1}), 1e-3)


def test_states_come_back_bit_for_bit_and_old_ones_go(tmp_path, morse):
    packed, params, loss, optimizer = morse
    start = training.init(params, optimizer, ema=True)
    for state, _ in training.fit(loss, start, optimizer, data.batches(packed, 4, epochs=2), ema_decay=0.9):
        training.save_state(tmp_path, state, keep=2)
    assert training.saved_steps(tmp_path) == [int(state.step) - 1, int(state.step)]
    chex.assert_trees_all_equal(training.restore_state(tmp_path, state), state)
    assert int(training.restore_state(tmp_path, state, int(state.step) - 1).step) == int(state.step) - 1
    with pytest.raises(FileNotFoundError, match=r"state of step 77 was not found; there are states of steps \["):
        training.restore_state(tmp_path, state, 77)
    with pytest.raises(FileNotFoundError, match="training state was not found"):
        training.restore_state(tmp_path / "nothing", state)
    other = training.init({**params, "more": jnp.zeros(3)}, optimizer, ema=True)
    with pytest.raises(ValueError, match="does not fit this model, optimiser and precision"):
        training.restore_state(tmp_path, other)


def test_ctrl_c_while_a_state_is_written_leaves_it_whole(tmp_path, monkeypatch):
    """Else the threads of orbax end with tracebacks, and the state is lost."""
    optimizer = training.optimizer(training.OptimizerConfig(), 1e-3)
    state = training.init(make.MORSE.init(), optimizer)
    save = ocp.CheckpointManager.save

    def interrupted(*arguments, **options):
        threading.Thread(target=lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        result = save(*arguments, **options)
        time.sleep(0.1)  # by now the signal is there
        return result

    monkeypatch.setattr(ocp.CheckpointManager, "save", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            training.save_state(tmp_path / "states", state)
    finally:
        signal.signal(signal.SIGINT, before)
    restored = training.restore_state(tmp_path / "states", state)
    assert training.saved_steps(tmp_path / "states") == [0]
    jax.tree.map(np.testing.assert_array_equal, restored.params, state.params)


def test_parameters_without_elements_are_saved(tmp_path):
    """Some layers of mlip's networks have weights of shape (1, 0), which orbax refuses."""
    optimizer = training.optimizer(training.OptimizerConfig("adam"), 1e-3)
    params = {"full": jnp.arange(3.0), "empty": jnp.zeros((1, 0))}
    state = training.init(params, optimizer, ema=True)
    training.save_state(tmp_path, state)
    like = training.init(jax.tree.map(jnp.ones_like, params), optimizer, ema=True)
    chex.assert_trees_all_equal(training.restore_state(tmp_path, like), state)


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import killed_run
    finally:
        sys.path.remove(str(SCRIPT.parent))
    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, SCRIPT, killed, "1000000"], env={**os.environ, "JAX_PLATFORMS": "cpu"})
    try:
        deadline = time.monotonic() + 300
        while len(_complete(killed)) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, "the run ended by itself"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = training.saved_steps(killed)
    assert left and process.returncode == -signal.SIGKILL
    total = left[-1] + 7
    chex.assert_trees_all_equal(killed_run.main(killed, total), killed_run.main(tmp_path / "whole", total))


def _complete(folder: Path) -> list[Path]:
    """States that are there under their final name, without touching them while another process writes."""
    return [path for path in folder.glob("*") if path.name.isdigit()] if folder.is_dir() else []
