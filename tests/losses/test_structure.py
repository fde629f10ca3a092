"""The distance of two structures is exact in every cell, and its gradient through a relaxation that of differences."""

from pathlib import Path

import ase
import ase.build
import ase.data
import ase.geometry
import bound_models as models
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lamjax
from lamjax import classical, neighbors, pytree
from lamjax.data.pairs import StructureBatch, pair_batches, read_pairs
from lamjax.losses.structure import StructureLossConfig, reduced_lattice, structure_error, structure_loss
from lamjax.relaxation import RelaxConfig, Unrolled, UntilConverged
from lamjax.system import System, pad

FILE = Path(__file__).parent.parent / "fixtures" / "si_defects" / "sub_B_1.extxyz"
error = jax.jit(structure_error)
reduce = jax.jit(reduced_lattice)


def system_of(positions, cell=((9, 0, 0), (0, 9, 0), (0, 0, 9)), pbc=(True, True, True), numbers=None):
    positions = np.asarray(positions, float)
    numbers = np.full(len(positions), 14) if numbers is None else np.asarray(numbers)
    return System(positions, numbers.astype(np.int32), np.asarray(cell, float), np.asarray(pbc))


def test_distance_is_the_formula():
    system = system_of(np.zeros((3, 3)), numbers=[1, 8, 14])
    target = np.array([[0.1, 0, 0], [0, -0.2, 0.05], [0.03, 0.02, 0]])
    mass = ase.data.atomic_masses[[1, 8, 14]]
    d = target - mass @ target / mass.sum()
    found = error(system, target)
    assert found.dq == pytest.approx(np.sqrt((mass * (d**2).sum(axis=1)).sum()), rel=1e-12)
    assert found.rmsd == pytest.approx(np.sqrt((d**2).sum() / 3), rel=1e-12)
    assert found.largest == pytest.approx(np.linalg.norm(d, axis=1).max(), rel=1e-12)


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (False, True, False), (False, False, False)])
def test_images_are_the_nearest_in_skewed_cells(pbc, rng):
    """Against all images within 8 cells of a compact cell; the system has a sheared cell of the same lattice."""
    grid = np.stack(np.meshgrid(*[np.arange(-8, 9) if p else [0] for p in pbc], indexing="ij"), -1).reshape(-1, 3)
    upper = np.triu(np.outer(pbc, pbc), 1)
    for _ in range(15):
        compact = 0.5 * rng.normal(size=(3, 3)) + np.diag(rng.uniform(3, 6, size=3))
        cell = (np.round(3 * rng.normal(size=(3, 3))) * upper + np.eye(3)) @ compact
        positions, target = rng.uniform(-5, 5, size=(2, 4, 3))
        system = system_of(np.concatenate([positions, -positions]), cell, pbc)
        d = target - positions
        target = np.concatenate([target, -target])  # opposite displacements: no common translation to remove
        far = d[:, None] + (grid @ compact)[None]
        shortest = np.linalg.norm(far, axis=-1).min(axis=1)
        found = error(system, target)
        assert found.largest == pytest.approx(shortest.max(), abs=1e-9)
        assert found.rmsd == pytest.approx(np.sqrt((shortest**2).mean()), abs=1e-9)


def test_reduced_lattice_is_minkowskis(rng):
    for _ in range(30):
        cell = np.round(rng.normal(size=(3, 3)) * 3 * np.tri(3, k=-1) + np.eye(3)) @ (
            rng.normal(size=(3, 3)) + 3 * np.eye(3)
        )
        transform = np.asarray(reduce(cell, np.ones(3, bool)))
        expected, _ = ase.geometry.minkowski_reduce(cell)
        assert abs(round(np.linalg.det(transform))) == 1
        lengths = np.sort(np.linalg.norm(transform @ cell, axis=1))
        np.testing.assert_allclose(lengths, np.sort(np.linalg.norm(expected, axis=1)), rtol=1e-6)


def test_translation_lattice_vectors_and_padding_do_not_count(rng):
    system = system_of(rng.uniform(0, 9, size=(5, 3)), [[9, 0, 0], [4, 8, 0], [-3, 2, 7]], numbers=[1, 6, 8, 14, 14])
    target = system.positions + 0.1 * rng.normal(size=(5, 3))
    plain = error(system, target)
    moved = target + rng.integers(-3, 4, size=(5, 3)) @ system.cell + np.array([3.3, -1.7, 5.0])
    np.testing.assert_allclose(error(system, moved), plain, rtol=1e-10)
    wide = np.concatenate([moved, np.full((2, 3), 7.0)])
    np.testing.assert_allclose(error(pad(system, 7), wide), plain, rtol=1e-10)
    stacked = error(pytree.stack([system, system]), np.stack([target, moved]))
    np.testing.assert_allclose(stacked.dq, [plain.dq, plain.dq], rtol=1e-10)


def test_gradient_of_the_distance_also_at_zero(rng):
    system = system_of(rng.uniform(0, 9, size=(4, 3)))
    gradient = jax.jit(jax.grad(lambda x, target: structure_error(system._replace(positions=x), target).dq))
    np.testing.assert_array_equal(gradient(system.positions, system.positions), 0)
    target = system.positions + 0.3 * rng.normal(size=(4, 3))
    direction = rng.normal(size=(4, 3))
    h = 1e-5
    numeric = (
        error(system._replace(positions=system.positions + h * direction), target).dq
        - error(system._replace(positions=system.positions - h * direction), target).dq
    ) / (2 * h)
    assert np.vdot(gradient(system.positions, target), direction) == pytest.approx(float(numeric), rel=1e-8)


def along(run, params, batch, direction, h: float) -> float:
    """The loss at params + h direction."""
    return float(run(jax.tree.map(lambda p, d: p + h * d, params, direction), batch)[0][0])


def dpa2_gradient_error(steps: int, seeds) -> float:
    """Largest relative deviation of directional derivatives of the loss from differences, on a real relaxation."""
    potential = models.bound_dpa2()
    params = models.params_of(potential)
    config = StructureLossConfig(RelaxConfig(fmax=0.0, adjoint=Unrolled(steps)))
    (batch,) = pair_batches(read_pairs(FILE), potential.shells, batch_size=2)  # the second row is empty
    run = jax.jit(jax.value_and_grad(structure_loss(potential, config), has_aux=True))
    (value, metrics), gradient = run(params, batch)
    assert metrics["n_structures"] == 1 and metrics["n_overflow"] == 0 and value > 0.1
    worst = 0.0
    for seed in seeds:
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        direction = tree.unflatten([jax.random.normal(k, p.shape, p.dtype) for k, p in zip(keys, leaves, strict=True)])

        h = 1e-5
        one, back, two, far_back = (along(run, params, batch, direction, k * h) for k in (1, -1, 2, -2))
        numeric = (8 * (one - back) - (two - far_back)) / (12 * h)
        exact = sum(float(jnp.vdot(g, d)) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
        worst = max(worst, abs(exact / numeric - 1))
    return worst


def test_gradient_through_20_steps_of_dpa2_is_that_of_finite_differences():
    assert dpa2_gradient_error(20, seeds=(1, 2)) < 1e-6


@pytest.mark.slow
def test_gradient_through_50_steps_of_dpa2_is_that_of_finite_differences():
    assert dpa2_gradient_error(50, seeds=(1, 2, 3)) < 1e-6


def pair_of_dimers(potential, starts, targets):
    """A batch of copper dimers of given lengths (Å); None is an empty row."""
    rows = []
    for start, target in zip(starts, targets, strict=True):
        system = lamjax.system.host_system(ase.Atoms("Cu2", positions=[(0, 0, 0), (start or 2.5, 0, 0)]))
        lists = neighbors.host_neighbors(system, potential.shells, (4,), 1)
        row = StructureBatch(system, lists, np.array([[0, 0, 0], [target or 0.0, 0, 0]]))
        rows.append(row if start else jax.tree.map(np.zeros_like, row))
    return pytree.stack(rows)


def test_what_explodes_is_dropped_and_counted():
    """Rows: good, NaN at the start, thrown apart, empty. The value is that of the good one alone."""

    def steep(params, r):
        near = r < 1.0
        wall = params["height"] / jnp.where(near, r, 1.0)
        return jnp.where(near, wall, 0) + (r - 2.5) ** 2 * params["k"]

    potential = classical.pair_potential(steep, {"height": 50.0, "k": 1.0}, 5.0, 4.0)
    params = models.params_of(potential)
    config = StructureLossConfig(RelaxConfig(adjoint=Unrolled(40), fmax=0.01), max_motion=0.8)
    run = jax.jit(jax.value_and_grad(structure_loss(potential, config), has_aux=True))
    batch = pair_of_dimers(potential, (2.2, 1e-300, 0.5, None), (2.6, 2.6, 2.6, None))
    (value, metrics), gradient = run(params, batch)
    assert all(np.isfinite(g) for g in gradient.values())
    assert metrics["n_structures"] == 1 and metrics["n_dropped"] == 2
    good = pair_of_dimers(potential, (2.2, None, None, None), (2.6, None, None, None))
    (alone, _), expected = run(params, good)
    assert value == pytest.approx(float(alone), rel=1e-12) and value > 0
    assert metrics["dq_median"] == pytest.approx(float(alone), rel=1e-12)
    for name in gradient:
        assert gradient[name] == pytest.approx(float(expected[name]), rel=1e-12)
    empty = jax.tree.map(np.zeros_like, batch)
    (nothing, metrics), gradient = run(params, empty)
    assert nothing == 0 and metrics["dq_median"] == 0 and all(g == 0 for g in gradient.values())


def test_kinds_are_functions_of_the_distance():
    potential = models.morse()
    params = models.params_of(potential)
    batch = pair_of_dimers(potential, (2.2, 2.3), (2.6, 2.7))
    values = {}
    for kind in ("dq", "squared", "bounded"):
        config = StructureLossConfig(RelaxConfig(adjoint=Unrolled(5)), kind=kind, scale=2.0)
        values[kind], metrics = jax.jit(structure_loss(potential, config))(params, batch)
    relaxed = 2 * metrics["dq_mean"] - metrics["dq_median"]
    assert values["dq"] == pytest.approx(float(relaxed))
    assert 0 < values["bounded"] < values["dq"] / 2
    assert values["squared"] >= values["dq"] ** 2


def test_loss_needs_an_adjoint_that_can_be_differentiated():
    with pytest.raises(ValueError, match=r"Use adjoint=Unrolled\(steps\)"):
        structure_loss(models.morse(), StructureLossConfig(RelaxConfig(adjoint=UntilConverged())))
    with pytest.raises(ValueError, match="known: dq, squared, bounded"):
        structure_loss(models.morse(), StructureLossConfig(kind="cubed"))
