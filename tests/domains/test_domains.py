"""One structure over several devices: the same numbers as on one, whatever the cell and the division."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ase
import ase.build
import jax
import numpy as np
import potentials
import pytest

import lamjax
from lamjax import classical, domains, neighbors
from lamjax.system import System

SCRIPT = Path(__file__).parent / "divided.py"
MORSE = classical.morse(depth=0.34, width=1.36, distance=2.87, cutoff=4.5)


@pytest.fixture(scope="module")
def facts():
    """What eight virtual devices find."""
    paths = os.pathsep.join([str(SCRIPT.parents[1]), *sys.path])
    flags = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths, "JAX_ENABLE_COMPILATION_CACHE": "false"}  # each runs once
    flags["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    done = subprocess.run([sys.executable, str(SCRIPT)], env=os.environ | flags, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", ["three", "one", "messages"])
def test_energy_forces_and_virial_are_those_of_one_device(facts, case):
    """In three directions with an empty domain, in an open one, and with messages through halos that hold their own."""
    result = facts[case]
    assert sum(result["own"]) == result["n_atoms"]
    assert (0 in result["own"]) == (case == "three")
    assert max(result[name] for name in lamjax.Prediction._fields) < 1e-12


def test_parameters_have_the_gradient_of_one_device(facts):
    assert facts["gradient"] < 1e-12


def test_a_simulation_is_that_of_one_device(facts):
    result = facts["moving"]
    assert result["step"] == 20 and result["grown"] > 0
    assert result["before"] != result["after"]  # atoms have changed domains
    assert max(result[name] for name in ("positions", "momenta", "forces", "stress", "conserved")) < 1e-10


# lengths that information travels: a cutoff for each layer, and the first look around
HOPS = {
    "dpa2_preset": (3.4, 3.4, 4.0),
    "dpa2_default": (3.4, 3.4, 4.0),
    "dpa3": (4.0, 4.0, 4.0),
    "nequip": (4.0, 4.0, 4.0),
    "lennard_jones": (4.0,),
    "gupta": (4.0,),
    "jax_md": (4.0,),
}


@pytest.mark.parametrize("name", HOPS)
def test_no_atom_beyond_the_receptive_field_changes_an_energy(name):
    """A chain of atoms, one for each step on the way: the last but one is within the field, the last is not."""
    case = potentials.cases()[name]
    potential, ends = case.potential, np.concatenate([[0], np.cumsum(HOPS[name])])
    assert potential.receptive_field == pytest.approx(ends[-1])
    along = np.append(0.8 * ends, ends[-1] + 0.01)
    positions = np.stack([along, 0.1 * np.sin(along), 0 * along], axis=1)
    numbers = np.array([8, 1, 29, 8, 1][: len(along)])

    @jax.jit
    def energy(positions, lists):
        system = System(positions, numbers, np.zeros((3, 3)), np.zeros(3, bool))
        return lamjax.potential.atomic_energies(potential, case.params, system, lists)[0]

    def first(moved: int | None = None) -> float:
        places = positions + (0 if moved is None else np.eye(len(along))[moved][:, None] * [0.005, 0.02, -0.03])
        system = System(places, numbers, np.zeros((3, 3)), np.zeros(3, bool))
        return float(energy(places, neighbors.allocate(system, potential.shells, (8,) * len(potential.shells))))

    assert first(-1) == first()
    assert first(-2) != first()


def test_what_cannot_be_divided_is_refused():
    system = lamjax.from_ase(ase.build.bulk("Cu", cubic=True))
    with pytest.raises(ValueError, match=r"2 x 2 x 3 domains need 12 devices, there are \d"):
        domains.allocate(MORSE, system, (2, 2, 3))
    for counts in ((2, 0, 1), 2, (2, 1), (1.5, 1, 1), "211", (2, None, 1), ((1, 2), 3, 1), (np.inf, 1, 1)):
        with pytest.raises(ValueError, match="three whole numbers of 1 or more"):
            domains.divide(counts)
    divided, single = domains.allocate(MORSE, system, (1, 1, 1)), lamjax.allocate(MORSE, system)
    with pytest.raises(ValueError, match="evaluated by domains.predict and domains.energy"):
        lamjax.predict(MORSE, MORSE.init(), system, divided)
    with pytest.raises(ValueError, match="got a Neighbors. Make them with domains.allocate"):
        domains.predict(MORSE, MORSE.init(), system, single)
    with pytest.raises(ValueError, match="allocated for the cutoff 4.5 Å, the potential looks at the cutoff 5 Å"):
        domains.predict(classical.morse(cutoff=5.0), MORSE.init(), system, divided)
    with pytest.raises(ValueError, match=r"_replace\(receptive_field=x\)"):
        domains.allocate(MORSE._replace(receptive_field=None), system, (1, 1, 1))


def test_what_has_no_room_is_named_and_never_a_number():
    """One domain suffices: eight atoms in arrays for four, more neighbours than slots."""
    atoms = ase.build.bulk("Cu", cubic=True)
    few = domains.allocate(MORSE, lamjax.from_ase(atoms), (1, 1, 1), skin=0.2, headroom=1.0)
    assert not few.overflow
    evaluate = jax.jit(lambda s, n: domains.predict(MORSE, MORSE.init(), s, n))
    one = lamjax.predict(MORSE, MORSE.init(), lamjax.from_ase(atoms), lamjax.allocate(MORSE, lamjax.from_ase(atoms)))
    np.testing.assert_allclose(evaluate(lamjax.from_ase(atoms), few).forces, one.forces, atol=1e-12)
    atoms.set_cell(0.7 * atoms.cell, scale_atoms=True)
    closer = lamjax.from_ase(atoms)
    predicted = evaluate(closer, few)
    assert all(np.isnan(np.asarray(x)).all() for x in predicted)
    later = jax.jit(lambda s, n: domains.update(MORSE, n, s))(closer, few)
    with pytest.raises(ValueError, match=r"An atom has \d+ neighbours within 4.5 Å, the arrays \d+. Allocate anew"):
        domains.check(later)
    full = jax.tree.map(np.array, later)
    full.lists.number[0] = 100, 3
    with pytest.raises(ValueError, match=r"Domain \(0, 0, 0\) holds 100 atoms and 3 in its halo, its arrays \d+"):
        domains.check(full)
