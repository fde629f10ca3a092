"""Nequix's `.nqx` in and out; numbers against a plain implementation (tests/nequip_reference.py)."""

import functools
import json
import re

import jax
import nequip_reference as reference
import numpy as np
import pytest
from typer.testing import CliRunner

import lamjax
from lamjax import checkpoints
from lamjax.cli import app
from lamjax.interop import nequix
from lamjax.potential import CheckpointError
from lamjax.system import System

CELL = np.array([[4.1, 0.0, 0.0], [0.7, 3.8, 0.0], [-0.4, 0.5, 4.4]])
POSITIONS = np.array([[0.1, 0.2, 0.0], [1.9, 0.3, 0.4], [0.6, 2.0, 1.1], [2.2, 2.1, 2.6]])
NUMBERS = np.array([8, 1, 29, 8], np.int32)
STRUCTURES = {
    "crystal": (POSITIONS, CELL, (True, True, True)),
    "slab": (POSITIONS, CELL, (True, True, False)),
    "molecule": (POSITIONS, np.zeros((3, 3)), (False, False, False)),
}


@pytest.fixture(scope="module")
def weights():
    return reference.arrays(reference.header())


@pytest.fixture(scope="module")
def path(tmp_path_factory, weights):
    path = tmp_path_factory.mktemp("nequix") / "tiny.nqx"
    path.write_bytes(reference.file(reference.header(), weights))
    return path


@pytest.fixture(scope="module")
def model(path):
    return lamjax.load(path)


@functools.partial(jax.jit, static_argnums=0)  # one program: operations one by one are compiled one by one
def atomic_energies(potential, params, system, neighbors):
    return lamjax.predict(potential, params, system, neighbors).atomic_energies


def energies(model, positions, cell, pbc, dtype=np.float64):
    system = System(positions.astype(dtype), NUMBERS, cell.astype(dtype), np.array(pbc))
    potential, params = model
    return np.asarray(atomic_energies(potential, params, system, lamjax.allocate(potential, system)))


@pytest.mark.parametrize("name", STRUCTURES)
def test_atomic_energies_equal_the_formulas(model, weights, name):
    positions, cell, pbc = STRUCTURES[name]
    expected = reference.atomic_energies(reference.header(), weights, NUMBERS, positions, cell, pbc)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(energies(model, positions, cell, pbc), expected, rtol=0, atol=1e-11)


def test_float32_is_close(path, model):
    exact = energies(model, *STRUCTURES["crystal"])
    single = lamjax.load(path, dtype=np.float32)
    np.testing.assert_allclose(energies(single, *STRUCTURES["crystal"], np.float32), exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"lmax": 2, "radial_mlp_layers": 1},
        {"n_layers": 1},
        {"hidden_irreps": "4x0e", "lmax": 0},
        {"hidden_irreps": "4x0e + 2x1o", "n_layers": 2},
    ],
)
def test_other_sizes(tmp_path, changes):
    head = reference.header(**changes)
    weights = reference.arrays(head, seed=1)
    (tmp_path / "m.nqx").write_bytes(reference.file(head, weights))
    positions, cell, pbc = STRUCTURES["slab"]
    expected = reference.atomic_energies(head, weights, NUMBERS, positions, cell, pbc)
    result = energies(lamjax.load(tmp_path / "m.nqx"), positions, cell, pbc)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-11)


def test_written_back_it_is_the_same_file(path, weights, model):
    config, params, header = nequix.load(path)
    written = nequix.write(config, params, "Default", header)
    line, rest = written.split(b"\n", 1)
    assert json.loads(line) | {"atom_energies": None} == reference.header() | {"atom_energies": None}
    assert rest == reference.file(reference.header(), weights).split(b"\n", 1)[1]


def test_a_bundle_keeps_it_and_its_header(tmp_path, path, model):
    stored = checkpoints.read(path)
    checkpoints.save(tmp_path / "m.lamjax", model[0], stored.params, stored.card)
    again = lamjax.load(tmp_path / "m.lamjax")
    assert again[0] == model[0]
    jax.tree.map(np.testing.assert_array_equal, again[1], model[1])
    assert checkpoints.read(tmp_path / "m.lamjax").card["nequix"]["learning_rate"] == 0.01


def test_commands_take_it_and_write_it(tmp_path, path, weights, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["show", str(path)], env={"COLUMNS": "100"})
    assert re.search(r"│   cutoff +│ +3.5 │", result.output), result.output  # of the header, a line for each key
    for words in (["show", path], ["convert", path, "m.lamjax"], ["convert", "m.lamjax", "back.nqx"]):
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, result.output
    expected = reference.file(reference.header(), weights)
    assert (tmp_path / "back.nqx").read_bytes().split(b"\n", 1)[1] == expected.split(b"\n", 1)[1]


def test_fewer_elements_give_the_same_energies(model):
    from lamjax import edit

    less = edit.restrict_elements(*model, ["O", "Cu", "H"])
    np.testing.assert_allclose(
        energies(less, *STRUCTURES["crystal"]), energies(model, *STRUCTURES["crystal"]), rtol=0, atol=1e-12
    )
    more = edit.extend_elements(*model, ["S"], like={"S": "O"})
    np.testing.assert_allclose(
        energies(more, *STRUCTURES["crystal"]), energies(model, *STRUCTURES["crystal"]), rtol=0, atol=1e-12
    )
    with pytest.raises(ValueError, match="like"):
        edit.extend_elements(*model, ["S"])
    with pytest.raises(ValueError, match=r"\.nqx cannot hold an embedding of 3"):
        nequix.write(more[0].config, more[1], "Default")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index_weights": True}, "index_weights is True"),
        ({"layer_norm": False}, "layer_norm is False"),
        ({"n_layers": 4}, "array .* has shape|cannot be read"),
        ({"n_layers": 2}, "array .* has shape|bytes follow"),
        ({"hidden_irreps": "5x0e + 3x1e"}, "natural parity"),
        ({"atomic_numbers": [1, 8, 400]}, "400"),
        ({"atomic_numbers": [1, 8, 8]}, "distinct"),
        ({"cutoff": -1.0}, "rcut"),
        ({"lmax": 1}, "lmax is 1"),
        ({"lmax": None}, "lmax is None, expected a whole number"),
        ({"lmax": 10**9}, "lmax is 1000000000, more than 11"),
        ({"n_layers": 10**9}, "n_layers is 1000000000, more than 64"),
        ({"n_layers": 3.5}, "n_layers is 3.5, expected a whole number"),
        ({"radial_mlp_size": [6]}, r"radial_mlp_size is \[6\], expected a whole number"),
        ({"cutoff": 10**400}, "cutoff is 1000*, expected a number"),
        ({"cutoff": {}}, "cutoff is {}, expected a number"),
        ({"scale": float("nan")}, "scale is nan, expected a number"),
        ({"shift": "0.2"}, "shift is '0.2', expected a number"),
        ({"hidden_irreps": None}, "hidden_irreps is None, expected a text"),
        ({"atomic_numbers": None}, "atomic_numbers is None, expected a list"),
        ({"atomic_numbers": ["H", "O", "Cu"]}, "expected a list of whole numbers"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path, weights, changes, message):
    (tmp_path / "m.nqx").write_bytes(reference.file(reference.header(**changes), weights))
    with pytest.raises(CheckpointError, match=message):
        lamjax.load(tmp_path / "m.nqx")


def test_a_header_without_a_key_is_refused(tmp_path, weights):
    head = reference.header()
    del head["avg_n_neighbors"]
    (tmp_path / "m.nqx").write_bytes(reference.file(head, weights))
    with pytest.raises(CheckpointError, match="avg_n_neighbors"):
        lamjax.load(tmp_path / "m.nqx")


def test_keys_of_a_header_that_are_not_known_are_named(tmp_path, weights):
    (tmp_path / "m.nqx").write_bytes(reference.file(reference.header(zbl=True, optimizer="muon"), weights))
    with pytest.warns(UserWarning, match=r"m\.nqx: the header has keys that lamjax does not know: zbl\."):
        lamjax.load(tmp_path / "m.nqx")


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, path, share):
    content = path.read_bytes()
    (tmp_path / "m.nqx").write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="truncated"):
        lamjax.load(tmp_path / "m.nqx")


def test_nan_and_objects_are_refused(tmp_path, weights):
    broken = [w.copy() for w in weights]
    broken[5].flat[0] = np.nan
    (tmp_path / "m.nqx").write_bytes(reference.file(reference.header(), broken))
    with pytest.raises(CheckpointError, match=r"m\.nqx: descriptor.*layers.* holds NaN or infinite numbers"):
        lamjax.load(tmp_path / "m.nqx")
    broken[5] = np.array([{"a": 1}], dtype=object)
    (tmp_path / "m.nqx").write_bytes(reference.file(reference.header(), broken))
    with pytest.raises(CheckpointError, match="array 6"):
        lamjax.load(tmp_path / "m.nqx")


def test_an_unknown_element_is_named(model):
    from ase.build import bulk

    with pytest.raises(ValueError, match="Si"):
        lamjax.allocate(model[0], bulk("Si"))
