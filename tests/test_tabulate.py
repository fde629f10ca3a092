"""The radial net as a table: the same numbers, and what is out of its range is seen."""

import functools
import itertools
import re
import tracemalloc
from pathlib import Path

import ase.data
import jax
import numpy as np
import pytest

import lamjax
from lamjax import edit
from lamjax.descriptors import DPA1Config, tabulation
from lamjax.heads import EnergyHeadConfig
from lamjax.interop.deepmd import write
from lamjax.potential import CheckpointError, cast_params

FIXTURES = Path(__file__).parent / "fixtures"
MODELS = [
    "multitask/single_water.dp",  # trained, two elements
    "option_matrix/m01_defaults/model.dp",  # empty slots count
    "option_matrix/m04_strip_threebody/model.pt",  # the part of the types goes with the switch
    "option_matrix/m09_nosmooth_strip_nosqrt/model.pt",
    "option_matrix/m11_exclude_protect/model.dp",
    "student/s01_strip/model.pt",
    "student/s04_se_atten_overflow/model.pt",
]


@functools.cache
def structure(name: str) -> lamjax.System:
    reference = FIXTURES / name
    folder = reference.parent / ("reference.npz" if reference.stem == "model" else f"{reference.stem}_reference.npz")
    with np.load(folder) as stored:
        frame = str(stored["frames"][0])
        species, positions, cell = (stored[f"{frame}__{key}"] for key in ("species", "positions", "cell"))
    numbers = np.array([ase.data.atomic_numbers[str(s)] for s in species], np.int32)
    return lamjax.System(positions, numbers, cell, np.full(3, True))


@functools.cache
def tabulated(name: str):
    """The model of a file with a table in the place of its net, and its parameters; made once, for seconds."""
    return edit.tabulate(*lamjax.load(FIXTURES / name))


def predict(potential, params, system) -> lamjax.Prediction:
    neighbors = lamjax.allocate(potential, system)
    return jax.jit(functools.partial(lamjax.predict, potential))(params, system, neighbors)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:.*keeps the nearest")
def test_energies_forces_and_virials_are_the_same(name):
    potential, params = lamjax.load(FIXTURES / name)
    system = structure(name)
    exact, table = predict(potential, params, system), predict(*tabulated(name), system)
    for part, limit in (("energy", 1e-7), ("forces", 1e-6), ("virial", 1e-5), ("atomic_energies", 1e-7)):
        assert np.abs(getattr(exact, part) - getattr(table, part)).max() < limit, part
    assert np.abs(exact.forces).max() > 1e-3


def test_blocks_of_atoms_change_nothing(monkeypatch):
    """A structure whose neighbours do not fit into one block; the last block is not full."""
    model, system = tabulated(MODELS[1]), structure(MODELS[1])
    whole = predict(*model, system)
    monkeypatch.setattr(tabulation, "BLOCK", {})
    monkeypatch.setattr(tabulation, "OTHERWISE", 5)
    assert system.n_atoms % 5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), predict(*model, system), whole)


@pytest.mark.parametrize("name", [MODELS[1], MODELS[5]], ids=["by neighbour", "by both, with the switch"])
@pytest.mark.filterwarnings("ignore:.*keeps the nearest")
def test_the_number_of_elements_changes_nothing(name, monkeypatch):
    """A small product for each atom, or a large one for all elements."""
    (potential, params), system = tabulated(name), structure(name)
    around = lamjax.allocate(potential, system)
    collected, programs = [], set()
    for few in (0, 1000):
        monkeypatch.setattr(tabulation, "FEW_TYPES", few)
        collected.append(predict(potential, params, system))
        program = str(jax.make_jaxpr(functools.partial(lamjax.predict, potential))(params, system, around))
        programs.add(tuple(sorted(re.findall(r"f\d+(\[[\d,]*\]) = dot_general", program))))
    assert len(programs) == 2 and () not in programs  # products of other shapes: two ways, not one
    for part in ("atomic_energies", "forces", "virial"):
        one, other = (getattr(x, part) for x in collected)
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)


def test_float32_is_as_good_as_the_net_in_float32():
    potential, params = lamjax.load(FIXTURES / MODELS[0])
    system = structure(MODELS[0])
    exact = predict(potential, params, system).forces
    single = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, system)
    errors = [
        np.abs(predict(p, cast_params(q, np.float32), single).forces - exact).max()
        for p, q in ((potential, params), tabulated(MODELS[0]))
    ]
    assert errors[1] < max(3 * errors[0], 1e-5)


def test_forces_are_the_slope_of_the_energy():
    """The table's own forces, by finite differences: they belong to its energy, not to the net's."""
    potential, params = edit.tabulate(*lamjax.load(FIXTURES / MODELS[0]), tolerance=1e-5)
    system = structure(MODELS[0])
    neighbors = lamjax.allocate(potential, system)
    energy = jax.jit(lambda x: potential.energy(params, system._replace(positions=x), neighbors))
    direction = np.random.default_rng(0).normal(size=system.positions.shape)
    h = 1e-5
    slope = (energy(system.positions + h * direction) - energy(system.positions - h * direction)) / (2 * h)
    forces = predict(potential, params, system).forces
    np.testing.assert_allclose(-np.sum(forces * direction), slope, rtol=1e-6)


def test_atoms_closer_than_the_table_are_not_extrapolated():
    potential, params = edit.tabulate(*lamjax.load(FIXTURES / MODELS[0]), closest=0.8)
    water = [[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]
    for scale, finite in ((1.0, True), (0.8, False)):
        system = lamjax.System(scale * np.array(water), np.array([8, 1, 1]), np.zeros((3, 3)), np.zeros(3, bool))
        assert bool(np.isfinite(predict(potential, params, system).energy)) == finite


def test_a_table_is_saved_and_loaded_but_not_edited_or_written_for_deepmd(tmp_path):
    potential, params = tabulated(MODELS[0])
    lamjax.save(tmp_path / "fast.lamjax", potential, params)
    again, same = lamjax.load(tmp_path / "fast.lamjax")
    assert again is potential
    assert all(map(np.array_equal, jax.tree.leaves(params), jax.tree.leaves(same)))
    with pytest.raises(ValueError, match="table already"):
        edit.tabulate(potential, params)
    with pytest.raises(ValueError, match="before `tabulate`"):
        edit.restrict_elements(potential, params, ["O"])
    with pytest.raises(CheckpointError, match="table, which DeePMD-kit does not know"):
        write.to_tree(potential.config, params, "Default")


def test_a_tolerance_out_of_reach_is_said():
    with pytest.raises(ValueError, match="intervals and .* the table is off by"):
        edit.tabulate(*lamjax.load(FIXTURES / MODELS[0]), tolerance=1e-16)


def test_many_elements_take_little_memory_and_the_same_accuracy(monkeypatch):
    """1,600 pairs of types: functions of a few pairs serve all, and a pair that they do not serve joins them."""
    config = lamjax.PotentialConfig(
        tuple(ase.data.chemical_symbols[1:41]),
        DPA1Config(rcut=5.0, rcut_smth=1.0, sel=80, neuron=(4, 8), axis_neuron=2, tebd_dim=4),
        (("Default", EnergyHeadConfig(neuron=(4,))),),
    )
    potential = lamjax.build(config)
    params = jax.tree.map(lambda x: x.astype(np.float64), potential.init(jax.random.key(0), np.float64))
    rng = np.random.default_rng(0)
    params.descriptor["repinit"]["statistics"]["stddev"] *= rng.uniform(0.05, 0.3, (40, 1))
    attempts = []
    monkeypatch.setattr(tabulation, "SAMPLE", 6)
    find = tabulation._basis
    monkeypatch.setattr(
        tabulation, "_basis", lambda net, pairs, *a: attempts.append(len(pairs)) or find(net, pairs, *a)
    )
    tracemalloc.start()
    table = edit.tabulate(potential, params)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert attempts[0] == 6 and len(attempts) > 1 and attempts[-1] < 100
    assert peak < 150e6  # of G and its slope at 2,049 places for all pairs: 420 MB, and several times so many
    numbers = rng.permutation(np.arange(1, 41, dtype=np.int32))
    places = 2.2 * np.array(list(itertools.product(range(4), range(4), range(3))))[:40] + rng.normal(0, 0.2, (40, 3))
    system = lamjax.System(places, numbers, np.diag([8.8, 8.8, 6.6]), np.full(3, True))
    exact, prediction = predict(potential, params, system), predict(*table, system)
    assert np.abs(exact.forces).max() > 1e-3
    assert np.abs(exact.forces - prediction.forces).max() < 1e-6
