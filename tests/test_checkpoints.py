"""Bundles hold a model whole; what is not a model says what it is."""

import os
import pickle
import re
from pathlib import Path

import flax.serialization
import h5py
import jax
import numpy as np
import optax
import potentials
import pytest
import yaml

import lamjax
from lamjax import checkpoints, classical, pytree, training
from lamjax.descriptors import DPA2Config, RepformerConfig, RepinitConfig
from lamjax.heads import EnergyHeadConfig
from lamjax.interop.deepmd import checkpoint, state_dict, write
from lamjax.potential import CheckpointError

WATER = Path(__file__).parent / "fixtures" / "multitask" / "single_water.dp"


@pytest.fixture(scope="module")
def model():
    potential = lamjax.build(potentials.preset_config())
    return potential, potential.init(jax.random.key(0))


@pytest.fixture
def bundle(model, tmp_path) -> Path:
    lamjax.save(tmp_path / "model.lamjax", *model, {"data": "none"})
    return tmp_path / "model.lamjax"


def test_bundle_gives_back_config_card_and_every_bit(model, bundle):
    potential, params = lamjax.load(bundle)
    assert potential is model[0]  # the same config builds the same functions: nothing compiles twice
    assert jax.tree.structure(params) == jax.tree.structure(model[1])
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and bool((a == b).all()), params, model[1]))
    assert checkpoints.read(bundle).card == {"data": "none"}


def test_parameters_come_in_the_dtype_that_is_asked_for(bundle):
    _, params = lamjax.load(bundle, dtype=np.float32)
    assert params.descriptor["repformer"]["layers"][0]["linear1"]["w"].dtype == np.float32
    assert params.heads["Default"]["statistics"]["out_bias"].dtype == np.float64  # biases are summed in float64


def test_a_dp_file_survives_a_bundle(tmp_path):
    potential, params = lamjax.load(WATER)
    lamjax.save(tmp_path / "water.lamjax", potential, params)
    again, same = lamjax.load(tmp_path / "water.lamjax")
    assert again is potential
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, same))


@pytest.fixture(scope="module")
def twelve():
    """A model of twelve layers in each of its stacks; all numbers of layer k are k. As names, "10" < "2"."""
    descriptor = DPA2Config(
        repinit=RepinitConfig(rcut=4.0, rcut_smth=1.0, nsel=32, neuron=(2,) * 12, axis_neuron=2, tebd_dim=3),
        repformer=RepformerConfig(**{**potentials._SMALL, "nlayers": 12}),
    )
    config = lamjax.PotentialConfig(("O", "H"), descriptor, (("Default", EnergyHeadConfig(neuron=(3,) * 12)),))
    potential = lamjax.build(config)
    shapes = jax.eval_shape(potential.init, jax.random.key(0))
    return potential, jax.tree_util.tree_map_with_path(lambda p, x: _filled(pytree.path_name(p), x.shape), shapes)


def _filled(name: str, shape) -> np.ndarray:
    """Zeros for a mean, ones for what else is no layer, the number of the layer else."""
    layer = re.search(r"(?:layers|net)/(\d+)/", name)
    return np.full(shape, float(layer[1]) if layer else float("mean" not in name))


def assert_in_order(params, n_numbers: int = 12) -> None:
    """Every number of layer k is k, in the descriptor's blocks and in the head."""
    stacks = (params.descriptor["repinit"]["net"], params.descriptor["repformer"]["layers"])
    for layers in (*stacks, params.heads["Default"]["layers"][:n_numbers]):
        assert [{float(v) for x in jax.tree.leaves(one) for v in np.ravel(x)} for one in layers] == [
            {float(k)} for k in range(n_numbers)
        ]


def test_a_bundle_keeps_twelve_layers_in_order(twelve, tmp_path):
    lamjax.save(tmp_path / "deep.lamjax", *twelve)
    assert_in_order(lamjax.load(tmp_path / "deep.lamjax")[1])
    content = flax.serialization.msgpack_restore((tmp_path / "deep.lamjax").read_bytes()[len(checkpoints.MAGIC) :])
    stored = content["params"]["descriptor"]["repformer"]["layers"]
    assert {k: float(layer["linear1"]["b"][0]) for k, layer in stored.items()} == {str(k): k for k in range(12)}


def test_files_of_deepmd_keep_twelve_layers_in_order(twelve, tmp_path):
    potential, params = twelve
    (tmp_path / "deep.dp").write_bytes(write.dp_bytes(potential.config, params, "Default"))
    tree = checkpoint.read_dp(tmp_path / "deep.dp")
    layers = tree["model"]["descriptor"]["repformers_variable"]["repformer_layers"]
    assert [float(layer["linear1"]["@variables"]["b"][0]) for layer in layers] == list(range(12))
    (tmp_path / "deep.yaml").write_text(yaml.safe_dump(_described(tree)))
    for name in ("deep.dp", "deep.yaml"):
        assert_in_order(lamjax.load(tmp_path / name)[1])


def _described(node):
    """Arrays as DeePMD-kit writes them into a `.yaml`."""
    if isinstance(node, np.ndarray):
        return {"@class": "np.ndarray", "@is_variable": True, "dtype": node.dtype.name, "value": node.tolist()}
    if isinstance(node, dict):
        return {key: _described(value) for key, value in node.items()}
    return [_described(value) for value in node] if isinstance(node, list) else node


def test_a_torch_checkpoint_keeps_twelve_layers_in_order(twelve):
    potential, params = twelve
    tensors = {}
    for path, x in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = state_dict.tensor_name(pytree.path_name(path), "Default", "repinit")
        layer = re.search(r"layers\.(\d+)\.", name.replace("embedding_net.layers", ""))  # one layer embeds the types
        tensors["model.Default.atomic_model." + name] = np.full(
            x.shape, float(layer[1]) if layer else "mean" not in name
        )
    options = write.to_tree(potential.config, params, "Default")["model_def_script"]
    for names in (sorted(tensors), sorted(tensors, reverse=True)):  # the order in the file means nothing
        state = {**{name: tensors[name] for name in names}, "_extra_state": {"model_params": options}}
        assert_in_order(state_dict.from_checkpoint({"model": state})[1])


def test_a_training_state_keeps_twelve_layers_in_order(twelve, tmp_path):
    state = training.init(twelve[1], optax.sgd(0.1))
    training.save_state(tmp_path, state)
    assert_in_order(training.restore_state(tmp_path, jax.tree.map(np.zeros_like, state)).params)


def test_every_truncation_is_noticed(bundle, tmp_path):
    content = bundle.read_bytes()
    for length in (0, 7, len(checkpoints.MAGIC), 400, len(content) // 2, len(content) - 1):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="cut"):
            lamjax.load(tmp_path / "cut")


def test_truncated_dp_file_is_noticed(tmp_path):
    (tmp_path / "cut.dp").write_bytes(WATER.read_bytes()[:30000])
    with pytest.raises(CheckpointError, match="cut.dp"):
        lamjax.load(tmp_path / "cut.dp")


def test_parameters_that_are_not_finite_are_refused_by_name(bundle, tmp_path):
    """Damaged bytes of a DeePMD-kit model, and a model whose training diverged."""
    content = WATER.read_bytes()
    with h5py.File(WATER) as file:
        places: list = []
        file.visititems(lambda _, x: places.append(x.id.get_offset()) if isinstance(x, h5py.Dataset) else None)
    place = max(filter(None, places))
    (tmp_path / "damaged.dp").write_bytes(content[:place] + b"\xff" * 8 + content[place + 8 :])
    potential, params = lamjax.load(bundle)
    lamjax.save(tmp_path / "diverged.lamjax", potential, jax.tree.map(lambda x: x * np.inf, params))
    for name in ("damaged.dp", "diverged.lamjax"):
        with pytest.raises(CheckpointError, match=rf"{name}: (descriptor|heads)/.* holds NaN or infinite numbers"):
            lamjax.load(tmp_path / name)


def test_foreign_files_are_described(tmp_path):
    class Malice:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    (tmp_path / "pickle").write_bytes(pickle.dumps(Malice()))
    (tmp_path / "zip").write_bytes(b"PK\x03\x04" + bytes(20))
    with h5py.File(tmp_path / "hdf5", "w") as file:
        file["x"] = 1.0
    for name, message in (("pickle", "unknown kind"), ("zip", "zip archive"), ("hdf5", "HDF5")):
        with pytest.raises(CheckpointError, match=message):
            lamjax.load(tmp_path / name)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        lamjax.load(tmp_path / "nowhere")


def test_wrong_head_lists_those_that_exist(bundle):
    with pytest.raises(ValueError, match="'Oxide' is unknown; available: Default"):
        lamjax.load(bundle, head="Oxide")


def test_parameters_of_another_model_are_refused_by_name(model, tmp_path):
    potential, params = model
    params = params._replace(descriptor={**params.descriptor, "g1_transform": {"w": np.zeros((3, 3))}})
    with pytest.raises(CheckpointError, match=r"descriptor/g1_transform/w has shape \(3, 3\), expected"):
        lamjax.save(tmp_path / "wrong.lamjax", potential, params)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_bundle_and_no_litter(bundle, monkeypatch):
    before = bundle.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.write_atomically(bundle, b"new")
    assert bundle.read_bytes() == before
    assert [p.name for p in bundle.parent.iterdir()] == [bundle.name]


def test_only_built_models_have_bundles(tmp_path):
    potential = classical.morse()
    with pytest.raises(CheckpointError, match="PairConfig"):
        lamjax.save(tmp_path / "morse", potential, potential.init())


def test_several_heads_need_a_choice_only_for_energies(tmp_path):
    config = potentials.preset_config()
    _, head = config.heads[0]
    potential = lamjax.build(lamjax.PotentialConfig(config.elements, config.descriptor, (("A", head), ("B", head))))
    lamjax.save(tmp_path / "two.lamjax", potential, potential.init(jax.random.key(1)))
    loaded, params = lamjax.load(tmp_path / "two.lamjax")
    assert sorted(params.heads) == ["A", "B"]
    system = lamjax.System(np.zeros((1, 3)), np.array([8]), np.zeros((3, 3)), np.zeros(3, bool))
    with pytest.raises(ValueError, match="available: A, B"):
        loaded.energy(params, system, lamjax.allocate(loaded, system))
    chosen, _ = lamjax.load(tmp_path / "two.lamjax", head="B")
    assert np.isfinite(chosen.energy(params, system, lamjax.allocate(chosen, system)))
