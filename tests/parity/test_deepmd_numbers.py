"""Energy, forces and virial of DeePMD-kit 3.2.0 (tests/fixtures/README.md), frame by frame."""

import functools
from pathlib import Path

import ase.data
import jax
import numpy as np
import pytest

import lamjax
from lamjax import neighbors
from lamjax.interop.deepmd import checkpoint
from lamjax.system import System, pad

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODELS = {
    "preset_small": ("presets/dpa2_small_f32.dp", "presets/dpa2_small_reference.npz"),
    "preset_medium": ("presets/dpa2_medium_f32.dp", "presets/dpa2_medium_reference.npz"),
    "trained_water": ("multitask/single_water.dp", "multitask/single_water_reference.npz"),
    **{
        name: (f"option_matrix/{name}/model.dp", f"option_matrix/{name}/reference.npz")
        for name in ("m01_defaults", "m02_preset_like", "m03_everything_on", "m11_exclude_protect")
    },
}
PARTS = {"energy": "energy", "atomic_energies": "atom_energy", "forces": "forces", "virial": "virial"}


@functools.cache
def load(name: str, dtype: str):
    """Potential and parameters of a stored model."""
    config, params = checkpoint.load(FIXTURES / MODELS[name][0], np.dtype(dtype))
    return lamjax.build(config), params


@functools.cache
def frames(name: str) -> dict[str, tuple[System, dict]]:
    """System and reference numbers of every stored frame of a model, by the frame's name."""
    with np.load(FIXTURES / MODELS[name][1]) as file:
        stored = {key: file[key] for key in file.files}
    return {
        str(f): (system_of(stored, f), {k: stored[f"{f}__{v}"] for k, v in PARTS.items()}) for f in stored["frames"]
    }


def system_of(stored: dict, frame: str) -> System:
    pbc = bool(np.all(stored[f"{frame}__pbc"]))
    numbers = np.array([ase.data.atomic_numbers[str(s)] for s in stored[f"{frame}__species"]], np.int32)
    cell = stored[f"{frame}__cell"] if pbc else np.zeros((3, 3))
    return System(stored[f"{frame}__positions"], numbers, cell, np.full(3, pbc))


@functools.cache
def predictions(name: str, dtype: str, extra_atoms: int = 0, extra_slots: int = 0) -> dict[str, lamjax.Prediction]:
    """All frames, padded to one shape so that a model compiles once."""
    potential, params = load(name, dtype)
    systems = {frame: system for frame, (system, _) in frames(name).items()}
    n_atoms = max(s.n_atoms for s in systems.values()) + extra_atoms
    found = np.max([neighbors.count(s, potential.shells) for s in systems.values()], axis=0)
    widths = neighbors.plan_capacities(tuple(found), potential.shells)
    widths = tuple(w + extra_slots for w in widths)
    predict = jax.jit(functools.partial(lamjax.predict, potential))
    results = {}
    for frame, system in systems.items():
        lists = neighbors.host_neighbors(pad(system, n_atoms), potential.shells, widths)
        assert not lists.overflow
        system = pad(system, n_atoms)
        system = system._replace(positions=system.positions.astype(dtype), cell=system.cell.astype(dtype))
        result = jax.tree.map(np.asarray, predict(params, system, lists._replace(offsets=np.zeros((0, 3), np.int32))))
        n = systems[frame].n_atoms
        results[frame] = result._replace(forces=result.forces[:n], atomic_energies=result.atomic_energies[:n])
    return results


def compare(name: str, dtype: str, tolerance: float):
    """Every part within `tolerance` of its largest component; of 1 eV where that is smaller (isolated atoms)."""
    for frame, prediction in predictions(name, dtype).items():
        for part, expected in frames(name)[frame][1].items():
            error = np.abs(getattr(prediction, part) - expected).max()
            assert error < tolerance * scale(expected), f"{frame} {part}: {error:.2e}"


def scale(expected) -> float:
    largest = np.abs(expected).max()
    return largest if largest > 1e-8 else 1.0


@pytest.mark.parametrize("name", MODELS)
def test_float64_is_deepmd(name):
    compare(name, "float64", 1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_float32_is_near_deepmd(name):
    compare(name, "float32", 2e-4)


@pytest.mark.parametrize("name", ["m01_defaults", "m02_preset_like"])
def test_wider_arrays_change_nothing(name):
    """Also where the mean of the statistics is not zero (m01), so that empty slots count."""
    exact, wide = predictions(name, "float64"), predictions(name, "float64", extra_atoms=5, extra_slots=24)
    for frame, expected in exact.items():
        for part in PARTS:
            values = getattr(expected, part)
            np.testing.assert_allclose(getattr(wide[frame], part), values, rtol=0, atol=1e-12 * scale(values))


def test_the_mean_of_m01_is_not_zero():
    _, params = load("m01_defaults", "float64")
    assert np.any(params.descriptor["repinit"]["statistics"]["mean"])
