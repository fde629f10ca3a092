"""The label loss equals DeePMD-kit's numbers, and missing labels and padding weigh nothing."""

import functools
import json

import jax
import jax.numpy as jnp
import label_frames as make
import numpy as np
import potentials
import pytest

import lamjax
from lamjax import data, losses, pytree
from lamjax.losses.labels import compare
from lamjax.potential import predict
from lamjax.system import Labels

REFERENCE = json.loads((make.FIXTURES / "loss_reference.json").read_text())
CASES = REFERENCE["cases"]
A = "atomic_model."
NAMES = {  # DeePMD's name -> path in our parameters
    A + "descriptor.type_embedding.embedding.embedding_net.layers.0.matrix": "descriptor/type_embedding/w",
    A + "descriptor.repformers.layers.0.linear1.matrix": "descriptor/repformer/layers/0/linear1/w",
    A + "fitting_net.filter_layers.networks.0.layers.0.bias": "heads/Default/layers/0/b",
    A + "descriptor.repinit.filter_layers.networks.0.layers.0.matrix": "descriptor/repinit/net/0/w",
}


@pytest.fixture(scope="module")
def model():
    """The reference's potential, parameters and batch."""
    potential, params = lamjax.load(make.FIXTURES / "loss_model.dp")
    frames = make.reference_frames()
    packed = data.pack(frames, data.plan(frames, potential.shells, 1))
    return potential, params, next(data.batches(packed, 3, seed=None))


@pytest.fixture(scope="module")
def pulled_back(model):
    """Predictions of the batch, and the function from dL/d(E, F, W) to dL/dparams; compiled once."""
    potential, params, batch = model

    @jax.jit
    def both(params, cotangent):
        def predictions(params):
            return jax.vmap(functools.partial(predict, potential, params))(batch.system, batch.neighbors)

        result, pull = jax.vjp(predictions, params)
        return result, pull(cotangent)[0]

    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(
        jax.vmap(functools.partial(predict, potential, params)), batch.system, batch.neighbors))  # fmt: skip
    return both(params, zero)[0], lambda cotangent: both(params, cotangent)[1]


def config_of(name: str) -> losses.LabelLossConfig:
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in CASES[name].items()}
    return losses.LabelLossConfig(**REFERENCE["prefactors"], **options)


def labels_of(name: str, batch):
    weights = np.array([1.0, 1.0, 0.0 if name == "no_virial_label" else 1.0])
    return batch._replace(labels=batch.labels._replace(weights=np.broadcast_to(weights, batch.labels.weights.shape)))


def leaf(tree, name: str):
    flat = {pytree.path_name(path): x for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}
    return np.asarray(flat[name])


def without_statistics(gradient):
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.zeros_like(x) if "statistics" in pytree.path_name(path) else x, gradient
    )


@pytest.mark.parametrize("step", [0, 1000])
@pytest.mark.parametrize("name", list(CASES))
def test_loss_and_gradient_equal_deepmd(model, pulled_back, name, step):
    predictions, pull = pulled_back
    stored = REFERENCE["results"][f"{name}__step{step}"]
    batch = labels_of(name, model[2])
    ratio = stored["lr"] / REFERENCE["learning_rate"]["start_lr"]
    (value, metrics), cotangent = jax.value_and_grad(lambda p: compare(config_of(name), p, batch, ratio), has_aux=True)(
        predictions
    )
    np.testing.assert_allclose(value, stored["loss_dpmodel"], rtol=1e-11)
    np.testing.assert_allclose(value, stored["loss"], rtol=1e-7)  # DeePMD-kit's torch backend rounds 1/N to float32
    gradient = without_statistics(pull(cotangent))
    np.testing.assert_allclose(pytree.global_norm(gradient), stored["total_gradient_norm"], rtol=1e-7)
    for theirs, ours in NAMES.items():
        np.testing.assert_allclose(jnp.linalg.norm(leaf(gradient, ours)), stored["gradient_norms"][theirs], rtol=1e-7)
        first = leaf(gradient, ours).ravel()[:6]
        np.testing.assert_allclose(first, stored["gradient_first_entries"][theirs], rtol=1e-6, atol=1e-8)
    for key, value in losses.errors(metrics).items():
        if key in stored["terms"] and name not in ("mae_norm", "relative_f"):
            np.testing.assert_allclose(value, stored["terms"][key], rtol=1e-7)


@pytest.mark.parametrize("step", [0, 1000])
def test_whole_gradients_equal_deepmd(model, pulled_back, step):
    stored = dict(np.load(make.FIXTURES / "loss_reference.npz"))
    ratio = REFERENCE["results"][f"mse__step{step}"]["lr"] / REFERENCE["learning_rate"]["start_lr"]
    cotangent = jax.grad(lambda p: compare(config_of("mse"), p, model[2], ratio)[0])(pulled_back[0])
    gradient = pulled_back[1](cotangent)
    for theirs, ours in NAMES.items():
        expected = stored[f"grad__mse__step{step}__{theirs}"]
        np.testing.assert_allclose(leaf(gradient, ours), expected, rtol=0, atol=1e-7 * np.abs(expected).max())


@pytest.fixture(scope="module")
def morse():
    """Frames of two sizes with labels from a Morse potential, and the loss of slightly wrong parameters."""
    frames = make.copper_frames(6)
    params = jax.tree.map(lambda x: 1.03 * x, make.MORSE.init())
    config = losses.LabelLossConfig(start_pref_v=0.5, limit_pref_v=0.5)
    return frames, data.plan(frames, make.MORSE.shells, 1), params, jax.jit(losses.label_loss(make.MORSE, config))


def one_batch(frames, plan, size):
    return next(data.batches(data.pack(frames, plan), size, seed=None))


def test_padded_batch_is_the_mean_of_single_losses(morse):
    frames, plan, params, loss = morse
    together, sums = loss(params, one_batch(frames, plan, 8))
    alone = [loss(params, one_batch([frame], plan, 8))[0] for frame in frames]
    assert len(frames) < 8 and float(together) > 0
    np.testing.assert_allclose(together, np.mean(alone), rtol=1e-12)
    added = jax.tree.map(lambda *x: sum(x), *[loss(params, one_batch([f], plan, 8))[1] for f in frames])
    for key, value in losses.errors(sums).items():
        np.testing.assert_allclose(value, losses.errors(added)[key], rtol=1e-12)


def test_unpadded_and_padded_frames_have_one_loss(morse):
    frames, plan, params, loss = morse
    small = [frame for frame in frames if frame.system.n_atoms == 4]
    own = data.plan(small, make.MORSE.shells, 1)
    a, b = (loss(params, one_batch(small, p, 3))[0] for p in (plan, own))
    assert plan.buckets != own.buckets
    np.testing.assert_allclose(a, b, rtol=1e-12)


def test_missing_labels_weigh_nothing(morse):
    frames, plan, params, loss = morse
    foreign = frames[1]._replace(
        labels=Labels(np.array(1e6), frames[1].labels.forces, np.full((3, 3), 1e6), np.array([0.0, 1.0, 0.0]))
    )
    zeroed = foreign._replace(labels=foreign.labels._replace(energy=np.array(0.0), virial=np.zeros((3, 3))))
    batches = [one_batch([frames[0], f, *frames[2:]], plan, 8) for f in (foreign, zeroed)]
    gradient = jax.jit(jax.grad(lambda p, batch: loss(p, batch)[0]))
    gradients = [gradient(params, batch) for batch in batches]
    assert gradients[0] == gradients[1]
    metrics = loss(params, batches[0])[1]
    assert (metrics["energy_n"], metrics["virial_n"]) == (5, 45)
    only_forces = [f._replace(labels=f.labels._replace(weights=np.array([0.0, 1.0, 0.0]))) for f in frames]
    assert sorted(losses.errors(loss(params, one_batch(only_forces, plan, 8))[1])) == ["mae_f", "rmse_f"]


def test_a_weight_scales_its_label_and_leaves_errors_as_they_are(morse):
    frames, plan, params, loss = morse
    weights = [np.array([0.5, 0.5, 0.5]), *(f.labels.weights for f in frames[1:])]
    some = [f._replace(labels=f.labels._replace(weights=w)) for f, w in zip(frames, weights, strict=True)]
    value, metrics = loss(params, one_batch(some, plan, 8))
    each = np.array([loss(params, one_batch([frame], plan, 8))[0] for frame in frames])
    np.testing.assert_allclose(value, np.mean(each * [0.5, *np.ones(5)]), rtol=1e-12)
    assert losses.errors(metrics) == losses.errors(loss(params, one_batch(frames, plan, 8))[1])


def test_gradient_of_the_loss_by_finite_differences(morse):
    frames, plan, params, loss = morse
    batch = one_batch(frames, plan, 8)
    gradient = jax.grad(lambda p: loss(p, batch)[0])(params)
    for name in params:
        h = 1e-5
        up, down = ({**params, name: params[name] + s * h} for s in (1, -1))
        slope = (loss(up, batch)[0] - loss(down, batch)[0]) / (2 * h)
        np.testing.assert_allclose(gradient[name], slope, rtol=1e-6)


def test_perfect_predictions_have_no_loss_and_a_finite_gradient(morse):
    frames, plan, _, _ = morse
    batch = one_batch(frames, plan, 8)
    for options in ({}, {"loss_func": "mae", "f_use_norm": True}, {"use_huber": True, "f_use_norm": True}):
        loss = losses.label_loss(make.MORSE, losses.LabelLossConfig(**options))
        value, gradient = jax.jit(jax.value_and_grad(lambda p, loss=loss: loss(p, batch)[0]))(make.MORSE.init())
        assert float(value) < 1e-9 and potentials.all_finite(gradient)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="f_use_norm needs"):
        losses.LabelLossConfig(f_use_norm=True)
    with pytest.raises(ValueError, match="use_huber is a form"):
        losses.LabelLossConfig(use_huber=True, loss_func="mae")


def test_weighted_sum_adds_losses_and_names_their_metrics(morse):
    frames, plan, params, loss = morse
    batch = one_batch(frames, plan, 8)
    value, metrics = losses.weighted_sum({"a": (2.0, loss), "b": (0.5, loss)})(params, {"a": batch, "b": batch}, 0.3)
    np.testing.assert_allclose(value, 2.5 * loss(params, batch, 0.3)[0], rtol=1e-12)
    assert {"a/energy_n", "b/forces_sq"} < metrics.keys()
