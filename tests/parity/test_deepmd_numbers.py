"""Energy, forces and virial of DeePMD-kit 3.2.0 (tests/fixtures/README.md), frame by frame."""

import functools
from pathlib import Path
from typing import NamedTuple

import ase.data
import jax
import numpy as np
import pytest

import lamjax
from lamjax import neighbors, pytree
from lamjax.system import System, pad

FIXTURES = Path(__file__).parents[1] / "fixtures"
MATRIX = sorted(path.name for path in (FIXTURES / "option_matrix").iterdir() if path.is_dir())
DPA3 = sorted(path.name for path in (FIXTURES / "dpa3").glob("r*"))
STUDENTS = sorted(path.name for path in (FIXTURES / "student").iterdir() if path.is_dir())
HEADS = ("water", "oxide", "alloy")
MT3 = "mt_shared_fitting_reference.npz"
PARTS = {"energy": "energy", "atomic_energies": "atom_energy", "forces": "forces", "virial": "virial"}


class Stored(NamedTuple):
    """A model file, its reference, and the head that both are about."""

    model: str
    reference: str
    head: str | None = None


def _tiny(folder: str, name: str) -> Stored:
    """The torch checkpoint where there is one, else the `.dp`."""
    kind = "pt" if (FIXTURES / folder / name / "model.pt").exists() else "dp"
    return Stored(f"{folder}/{name}/model.{kind}", f"{folder}/{name}/reference.npz")


MODELS = {
    "preset_small": Stored("presets/dpa2_small_f32.dp", "presets/dpa2_small_reference.npz"),
    "preset_medium": Stored("presets/dpa2_medium_f32.dp", "presets/dpa2_medium_reference.npz"),
    "trained_water": Stored("multitask/single_water.dp", "multitask/single_water_reference.npz"),
    **{name: _tiny("option_matrix", name) for name in MATRIX},
    **{name: _tiny("student", name) for name in STUDENTS},
    **{name: _tiny("dpa3", name) for name in DPA3},
    **{
        f"{name}:{head}": Stored(f"multitask/{name}.pt", f"multitask/{name}_reference.npz", head)
        for name in ("mt_separate_fitting", "mt_shared_fitting_case")
        for head in HEADS
    },
    **{
        f"dpa3:{head}": Stored("dpa3/multitask/mt_shared_fitting.pt", f"dpa3/multitask/{MT3}", head)
        for head in ("water", "alloy")
    },
}
# of DPA-3 those that together have every option; the others are slow only because there are many to compile
QUICK = ("r02", "r03", "r05", "r07", "r11", "r19", "dpa3:water")
SLOW = [name for name in MODELS if name[0] == "r" and name[:3] not in QUICK or name == "dpa3:alloy"]
# every block, both forms of the type input, sel that cuts, further inputs, the student
SINGLE = ("preset_small", "preset_medium", "trained_water", "m01_defaults", "m02_preset_like", "m03_everything_on")
SINGLE += ("m09_nosmooth_strip_nosqrt", "m11_exclude_protect", "m17_fparam_aparam", "m19_sel_overflow", "s01_strip")
SINGLE += ("r02_published_like",)


@functools.cache
def load(name: str, dtype: str):
    """Potential and parameters of a stored model."""
    return lamjax.load(FIXTURES / MODELS[name].model, MODELS[name].head, np.dtype(dtype))


@functools.cache
def frames(name: str) -> dict[str, tuple[System, dict]]:
    """System and reference numbers of every stored frame of a model, by the frame's name."""
    head = MODELS[name].head
    prefix = f"{head}__" if head else ""
    with np.load(FIXTURES / MODELS[name].reference) as file:
        stored = {key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)}
    return {
        str(f): (system_of(stored, f), {k: stored[f"{f}__{v}"] for k, v in PARTS.items()}) for f in stored["frames"]
    }


def system_of(stored: dict, frame: str) -> System:
    pbc = bool(np.all(stored[f"{frame}__pbc"]))
    numbers = np.array([ase.data.atomic_numbers[str(s)] for s in stored[f"{frame}__species"]], np.int32)
    cell = stored[f"{frame}__cell"] if pbc else np.zeros((3, 3))
    parameters = (stored.get(f"{frame}__{name}") for name in ("fparam", "aparam"))
    charge_spin = stored.get(f"{frame}__charge_spin")
    charge_spin = None if charge_spin is None else charge_spin.astype(np.int32)
    system = System(stored[f"{frame}__positions"], numbers, cell, np.full(3, pbc), *parameters)
    return system._replace(charge_spin=charge_spin)


@functools.cache
def predictions(name: str, dtype: str, extra_atoms: int = 0, extra_slots: int = 0) -> dict[str, lamjax.Prediction]:
    """All frames, padded to one shape so that a model compiles once."""
    potential, params = load(name, dtype)
    systems = {frame: system for frame, (system, _) in frames(name).items()}
    n_atoms = max(s.n_atoms for s in systems.values()) + extra_atoms
    counts = np.max([neighbors.count(s, potential.shells) for s in systems.values()], axis=0)
    widths = neighbors.plan_capacities(tuple(counts), potential.shells)
    widths = tuple(w + extra_slots for w in widths)
    predict = jax.jit(functools.partial(lamjax.predict, potential))
    results = {}
    for frame, system in systems.items():
        lists = neighbors.host_neighbors(pad(system, n_atoms), potential.shells, widths)
        assert not lists.overflow
        system = pad(system, n_atoms)
        system = pytree.cast(system, dtype)
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


@pytest.mark.parametrize("name", [name for name in MODELS if name not in SLOW])
def test_float64_is_deepmd(name):
    compare(name, "float64", 1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SLOW if name != "r17_float32"])
def test_float64_is_deepmd_for_the_rest(name):
    compare(name, "float64", 1e-11)


@pytest.mark.parametrize("name", SINGLE)
def test_float32_is_near_deepmd(name):
    compare(name, "float32", 2e-4)


def test_a_float32_model_is_near_deepmds_float32():
    """r17 is stored and was evaluated in float32; forces that vanish by symmetry are rounding there."""
    largest = {part: max(np.abs(f[1][part]).max() for f in frames("r17_float32").values()) for part in PARTS}
    for frame, prediction in predictions("r17_float32", "float32").items():
        for part, expected in frames("r17_float32")[frame][1].items():
            assert np.abs(getattr(prediction, part) - expected).max() < 2e-5 * largest[part], (frame, part)


@pytest.mark.parametrize("name", ["m01_defaults", "m02_preset_like", "r03_compress_linear_heads"])
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


def test_default_frame_parameters_stand_in_for_missing_ones():
    """m17 has a default: without fparam the stored `energy_default_fparam` comes out."""
    potential, params = load("m17_fparam_aparam", "float64")
    predict = jax.jit(functools.partial(lamjax.predict, potential))
    with np.load(FIXTURES / MODELS["m17_fparam_aparam"].reference) as stored:
        for frame in ("water", "molecule"):
            system = frames("m17_fparam_aparam")[frame][0]._replace(fparam=None)
            prediction = predict(params, system, lamjax.allocate(potential, system))
            np.testing.assert_allclose(prediction.energy, stored[f"{frame}__energy_default_fparam"], rtol=1e-13)
            expected = stored[f"{frame}__forces_default_fparam"]
            assert np.abs(prediction.forces - expected).max() < 1e-11 * scale(expected)


def test_default_charge_and_spin_stand_in_for_missing_ones():
    """r11 has a default: without charge_spin the stored `energy_default_charge_spin` comes out."""
    potential, params = load("r11_chgspin", "float64")
    with np.load(FIXTURES / MODELS["r11_chgspin"].reference) as stored:
        system = frames("r11_chgspin")["dimer"][0]._replace(charge_spin=None)
        predict = jax.jit(functools.partial(lamjax.predict, potential))
        prediction = predict(params, system, lamjax.allocate(potential, system))
        np.testing.assert_allclose(prediction.energy, stored["dimer__energy_default_charge_spin"], rtol=1e-13)
        expected = stored["dimer__forces_default_charge_spin"]
        assert np.abs(prediction.forces - expected).max() < 1e-11 * scale(expected)


def test_missing_atomic_parameters_are_an_error():
    potential, params = load("m17_fparam_aparam", "float64")
    system = frames("m17_fparam_aparam")["molecule"][0]._replace(aparam=None)
    with pytest.raises(ValueError, match=r"takes 1 numbers aparam, the structure has none.*arrays\[\"aparam\"\]"):
        jax.eval_shape(functools.partial(lamjax.predict, potential), params, system, lamjax.allocate(potential, system))
