"""Forces on atoms and cell together, against ASE's filter."""

import ase.build
import bound_models as models
import jax
import numpy as np
import pytest
from ase.filters import FrechetCellFilter

import lamjax
from lamjax import Calculator
from lamjax.relaxation import CellConfig, RelaxConfig, Unrolled, relax


@pytest.mark.parametrize("n_steps", [1, 4])
def test_fmax_with_a_cell_is_that_of_ase(n_steps):
    """At a strained cell, under pressure; once the cell decides and once, with atoms far from their places, an atom."""
    potential = models.morse()
    params = models.params_of(potential)
    atoms = ase.build.bulk("Cu", "fcc", a=3.3 if n_steps == 4 else 3.6, cubic=True)
    atoms.rattle(0.02 if n_steps == 4 else 0.3, seed=1)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.03 * np.random.default_rng(0).normal(size=(3, 3))), True)
    config = RelaxConfig(fmax=0, adjoint=Unrolled(n_steps), cell=CellConfig(pressure=0.05))
    system = lamjax.from_ase(atoms)
    lists = lamjax.allocate(potential, system, capacity=96)
    relaxed = jax.jit(lambda s, n: relax(potential, params, s, n, config))(system, lists)
    atoms.calc = Calculator((potential, params))
    by_ase = FrechetCellFilter(atoms, scalar_pressure=0.05)  # what is strained is the cell of the start
    atoms.set_cell(np.asarray(relaxed.system.cell))
    atoms.set_positions(np.asarray(relaxed.system.positions))
    forces = by_ase.get_forces()
    forces[-3:] = (forces[-3:] + forces[-3:].T) / 2  # the rest would turn the cell, which changes no energy
    rows = np.linalg.norm(forces, axis=1)
    assert relaxed.fmax == pytest.approx(rows.max(), rel=1e-9)
    assert (np.argmax(rows) >= len(atoms)) == (n_steps == 4)
    assert np.abs(np.asarray(relaxed.system.cell) - system.cell).max() > 1e-4
