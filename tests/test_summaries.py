"""One line for potentials, parameters, structures and relaxations, wherever they are printed."""

import json

import ase.build
import jax
import numpy as np
import potentials
import pytest
import students

import lamjax
from lamjax import classical, relaxation, system
from lamjax.relaxation import CellConfig, RelaxConfig


def lines(*things) -> list[str]:
    shown = [repr(thing) for thing in things]
    assert all("\n" not in text and len(text) < 200 for text in shown), shown
    return shown


def test_models_and_parameters_say_what_they_are():
    case = students.case()
    known = "-".join(potentials.ELEMENTS)
    (first,) = lines(case.potential)
    assert first == f"<DPA-1, {known}, cutoff 4 Å, head Default>"
    n = sum(np.size(leaf) for leaf in jax.tree.leaves(case.params))
    dtype = jax.tree.leaves(case.params)[0].dtype
    assert lines(case.params)[0].startswith(f"<{n:,} parameters ({dtype}") and "heads Default>" in repr(case.params)
    two = lamjax.edit.add_head(case.potential, case.params, "other", "Default")
    assert "heads: Default, other (" in lines(*two)[0]
    assert lines(classical.lennard_jones())[0] == "<lennard_jones, all elements, cutoff 2.5 Å>"
    own = case.potential._replace(config="a formula of mine", elements=None)
    assert lines(own)[0].startswith("<a formula of mine, all elements")


def test_structures_say_what_they_hold():
    crystal = system.host_system(ase.build.bulk("NaCl", "rocksalt", a=5.6))
    molecule = system.host_system(ase.build.molecule("H2O"))
    assert lines(crystal) == ["<System, NaCl, 2 atoms, periodic along a b c, 43.9 Å³>"]
    assert lines(molecule) == ["<System, H2O, 3 atoms, not periodic>"]
    assert "3 atoms and 2 of padding" in lines(system.pad(molecule, 5))[0]
    batch = jax.tree.map(lambda x: np.stack([x, x]), molecule)
    assert lines(batch) == ["<System, arrays of shape (2, 3, 3)>"]


def test_inside_jit_and_without_numbers_printing_does_not_fail():
    seen = []

    def look(crystal):
        seen.append(repr(crystal))
        return crystal.positions

    crystal = lamjax.from_ase(ase.build.bulk("Si"))
    jax.make_jaxpr(look)(crystal)
    shapes = jax.eval_shape(lambda x: x, crystal)
    lines(*seen, shapes, jax.tree.map(lambda _: None, crystal), students.case().params._replace(heads=None))
    assert seen == ["<System, arrays of shape (2, 3)>"]


@pytest.fixture(scope="module")
def relaxed():
    potential = classical.lennard_jones(2.3, 0.1, 6.0)
    argon = ase.build.bulk("Ar", a=3.7)
    config = RelaxConfig(fmax=1e-3, max_steps=200, cell=CellConfig())
    return relaxation.relax_structures(potential, potential.init(), [argon], config)[0]


def test_a_relaxation_says_how_it_ended(relaxed):
    (line,) = lines(relaxed)
    assert line.startswith(f"<Relaxation, converged after {int(relaxed.n_steps)} steps: ") and "Ar, 1 atom" in line
    broken = relaxed._replace(converged=np.array(False), finite=np.array(False))
    assert "not finite after" in lines(broken)[0]
    batch = jax.tree.map(lambda x: np.stack([x, x]), relaxed)
    assert lines(batch)[0].startswith("<Relaxation, 2 of 2 converged")


def test_a_row_is_plain_and_equals_what_ase_says(relaxed):
    row = relaxation.row(relaxed)
    assert json.loads(json.dumps(row)) == row
    atoms = lamjax.to_ase(relaxed)
    assert row["energy"] == pytest.approx(atoms.get_potential_energy()) and row["n_atoms"] == len(atoms)
    assert row["volume"] == pytest.approx(atoms.get_volume()) and row["converged"] is True
    with pytest.raises(ValueError):
        relaxation.row(jax.tree.map(lambda x: np.stack([x, x]), relaxed))
