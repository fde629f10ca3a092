"""L-BFGS: its inverse Hessian against the dense formula, its steps by hand, its ends against those of ASE and FIRE."""

import ase
import ase.build
import bound_models as models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.calculators.morse import MorsePotential
from ase.optimize import BFGS

from lamjax import classical
from lamjax.relaxation import CellConfig, FireConfig, LBFGSConfig, RelaxConfig, stream
from lamjax.relaxation.lbfgs import inverse_hessian_product
from lamjax.system import host_system

NUMBERS = LBFGSConfig(curvature=40.0).numbers(np.float64)
FORCE = jnp.array([[0.3, 0, 0], [-0.1, 0.2, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]])  # of two atoms, a fixed cell


def walked(method: LBFGSConfig, hessian, n: int, rng):
    """A state after n random steps over a quadratic surface, and the pairs of them."""
    z = jnp.asarray(rng.normal(size=(4, 3)))
    force = lambda z: -(hessian @ z.ravel()).reshape(z.shape)  # noqa: E731
    state, pairs = method.init(method.numbers(np.float64), z, force(z)), []
    for _ in range(n):
        new = state.position + 0.1 * rng.normal(size=z.shape)
        pairs.append((np.ravel(new - state.position), np.ravel(state.force - force(new))))
        state = method.step(method.numbers(np.float64), state, new, force(new))
    return state, pairs


@pytest.mark.parametrize("n", [0, 2, 4, 7])
def test_product_is_that_of_the_dense_update(n, rng):
    """H <- (I - s yᵀ/s·y) H (I - y sᵀ/s·y) + s sᵀ/s·y over the newest four pairs, from any scale."""
    root = rng.normal(size=(12, 12))
    hessian = root @ root.T + np.eye(12)
    state, pairs = walked(LBFGSConfig(memory=4), hessian, n, rng)
    dense = 0.3 * np.eye(12)
    for s, y in pairs[-4:]:
        left = np.eye(12) - np.outer(s, y) / (s @ y)
        dense = left @ dense @ left.T + np.outer(s, s) / (s @ y)
    v = rng.normal(size=12)
    product = inverse_hessian_product(state, jnp.asarray(0.3), jnp.asarray(v.reshape(4, 3)))
    np.testing.assert_allclose(np.ravel(product), dense @ v, rtol=1e-9, atol=1e-12)
    if pairs:
        s, y = pairs[-1]
        np.testing.assert_allclose(dense @ y, s, atol=1e-12)  # the secant condition


def test_first_step_is_along_the_force_and_limited():
    method = LBFGSConfig(curvature=40.0, max_step=0.05)
    state = method.init(NUMBERS, jnp.zeros((5, 3)), FORCE)
    np.testing.assert_allclose(method.propose(NUMBERS, state, None), FORCE / 40, rtol=1e-12)
    far = method.propose(NUMBERS, state._replace(force=100 * FORCE), None)
    np.testing.assert_allclose(far, FORCE * 0.05 / 0.3, rtol=1e-12)


def test_pairs_of_negative_or_no_curvature_do_not_count():
    """Where the force grows along a step, or does not change, the pairs and the scale stay."""
    method = LBFGSConfig()
    start = method.init(NUMBERS, jnp.zeros((5, 3)), FORCE)
    good = method.step(NUMBERS, start, 0.01 * FORCE, 0.5 * FORCE)
    assert np.any(good.steps[0]) and not np.any(good.steps[1:])
    np.testing.assert_allclose(method.propose(NUMBERS, good, None), 0.02 * FORCE, rtol=1e-9)  # the secant's zero
    for factor in (2.0, 0.5, 0.5 - 1e-6):
        after = method.step(NUMBERS, good, good.position + 0.01 * FORCE, factor * FORCE)
        np.testing.assert_array_equal(after.steps, good.steps)
        np.testing.assert_array_equal(after.changes, good.changes)


def test_a_step_that_is_not_downhill_is_one_along_the_force():
    """Pairs of another surface may point anywhere: of states of two structures, or after a jump of the potential."""
    method, x = LBFGSConfig(), jnp.zeros((5, 3)).at[0, 0].set(1.0)
    y = jnp.zeros((5, 3)).at[0, 0].set(1e-6).at[1, 1].set(1.0)
    state = method.init(NUMBERS, jnp.zeros((5, 3)), jnp.zeros((5, 3)).at[1, 1].set(0.5).at[0, 0].set(-1e-9))
    state = state._replace(steps=state.steps.at[0].set(x), changes=state.changes.at[0].set(y))
    moved = method.propose(NUMBERS, state, None)
    scale = 1e-6 / (1 + 1e-12)
    np.testing.assert_allclose(moved, scale * state.force, rtol=1e-9)


def test_limit_of_the_next_step_halves_uphill_and_grows_again():
    method = LBFGSConfig(max_step=0.2)
    start = method.init(NUMBERS, jnp.zeros((5, 3)), FORCE)
    place = 0.1 * FORCE / 0.3
    uphill = method.step(NUMBERS, start, place, -1.1 * FORCE)  # the mean force along the step points back
    assert uphill.radius == pytest.approx(0.05)
    between = method.step(NUMBERS, uphill, uphill.position - 0.1 * place, 0.8 * FORCE)
    assert between.radius == pytest.approx(0.05)  # too far, but downhill
    good = method.step(NUMBERS, between, between.position + 0.1 * place, 0.1 * FORCE)
    assert good.radius == pytest.approx(0.1)
    assert method.step(NUMBERS, start, place, 0.1 * FORCE).radius == 0.2


def crystals() -> list[ase.Atoms]:
    collected = []
    for seed in range(4):
        atoms = ase.build.bulk("Cu", "fcc", a=3.55, cubic=True) * ((1, 1, 1) if seed < 2 else (2, 1, 1))
        atoms.rattle(0.15, seed=seed)
        strain = 0.03 * np.random.default_rng(seed).normal(size=(3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        collected.append(atoms)
    return collected


@pytest.mark.parametrize(
    ("cell", "dtype"),
    [(None, np.float64), (CellConfig(pressure=0.01), np.float64), (CellConfig(pressure=0.01), np.float32)],
    ids=["fixed", "variable", "variable, float32"],
)
def test_ends_are_those_of_fire_after_half_the_steps(cell, dtype):
    potential = models.morse()
    params = potential.init(dtype=dtype)
    systems = [host_system(atoms, dtype) for atoms in crystals()]
    fmax, ends = (1e-5 if dtype == np.float64 else 5e-3), {}
    for method in (FireConfig(), LBFGSConfig()):
        config = RelaxConfig(fmax=fmax, max_steps=500, cell=cell, minimiser=method)
        outcomes = sorted(stream(potential, params, systems, config, slots=2, max_programs=1), key=lambda o: o.number)
        ends[method.type] = [o.relaxation for o in outcomes]
        assert all(o.relaxation.converged and o.relaxation.system.positions.dtype == dtype for o in outcomes)
    energies = {name: np.array([r.energy for r in outcomes]) for name, outcomes in ends.items()}
    np.testing.assert_allclose(energies["lbfgs"], energies["fire"], rtol=0, atol=1e-6 if dtype == np.float64 else 1e-3)
    steps = {name: np.array([r.n_steps for r in outcomes]) for name, outcomes in ends.items()}
    assert np.all(steps["lbfgs"] <= steps["fire"] / 2), steps


def test_minimum_of_a_cluster_is_that_of_ase():
    """ASE's own Morse potential, BFGS; from a start that overlaps, over curvatures of both signs."""
    bond = {"epsilon": 0.5, "r0": 2.5, "rho0": 4.0}
    potential = classical.morse(0.5, 4.0 / 2.5, 2.5, cutoff=12.0, switch_start=11.9)
    atoms = ase.Atoms("Cu4", [(0, 0, 0), (1.7, 0, 0), (1.1, 2.6, 0.1), (1.0, 0.9, 2.9)])
    config = RelaxConfig(fmax=1e-4, max_steps=200, minimiser=LBFGSConfig())
    (outcome,) = stream(potential, potential.init(dtype=np.float64), [host_system(atoms)], config)
    atoms.calc = MorsePotential(**bond, rcut1=11.9, rcut2=12.0)
    assert BFGS(atoms, logfile=None).run(fmax=1e-5, steps=500)
    assert outcome.relaxation.converged
    assert outcome.relaxation.energy == pytest.approx(-6 * 0.5, abs=1e-3)  # a tetrahedron of six bonds
    assert outcome.relaxation.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)


@pytest.mark.parametrize("settings", [{"memory": 0}, {"curvature": 0.0}, {"softest": -1.0}, {"max_step": None}])
def test_impossible_settings_are_errors(settings):
    with pytest.raises(ValueError, match=r"LBFGSConfig: (memory|curvature|softest|max_step)"):
        LBFGSConfig(**settings)


def test_every_row_of_a_batch_has_pairs_of_its_own():
    """vmap is a loop: no state of a structure reaches another one's step."""
    method, rng = LBFGSConfig(memory=3), np.random.default_rng(0)
    states = [walked(method, np.diag(rng.uniform(1, 9, 12)), n, rng)[0] for n in (1, 5)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    together = jax.vmap(lambda s: method.propose(NUMBERS, s, None))(stacked)
    for k, state in enumerate(states):
        np.testing.assert_allclose(together[k], method.propose(NUMBERS, state, None), rtol=1e-12)
