"""The loss of where relaxations end: its gradient is that of differences, and what explodes is left out and counted."""

from importlib import resources
from pathlib import Path

import ase
import ase.data
import bound_models as models
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lamjax
from lamjax import classical, neighbors, pytree
from lamjax.data import StructureBatch, pack_pairs, pair_batches, read_pairs
from lamjax.losses import DistanceConfig, StructureLossConfig, structure_loss
from lamjax.relaxation import RelaxConfig, Unrolled
from lamjax.system import Labels

DEMO = str(resources.files("lamjax") / "assets" / "demo" / "base.lamjax")
FILE = Path(__file__).parent.parent / "fixtures" / "si_defects" / "sub_B_1.extxyz"


def along(run, params, batch, direction, h: float) -> float:
    """The loss at params + h direction."""
    return float(run(jax.tree.map(lambda p, d: p + h * d, params, direction), batch)[0][0])


def net_gradient_error(potential, params, steps: int, seeds, h: float = 1e-5) -> float:
    """Largest relative deviation of directional derivatives of the loss from differences, on a real relaxation."""
    config = StructureLossConfig(RelaxConfig(fmax=0.0, adjoint=Unrolled(steps)))
    (batch,) = pair_batches(pack_pairs(read_pairs(FILE), potential.shells), batch_size=2)  # the second row is empty
    run = jax.jit(jax.value_and_grad(structure_loss(potential, config), has_aux=True))
    (value, metrics), gradient = run(params, batch)
    assert metrics["n_structures"] == 1 and metrics["n_overflow"] == 0 and value > 0.1
    worst = 0.0
    for seed in seeds:
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        direction = tree.unflatten([jax.random.normal(k, p.shape, p.dtype) for k, p in zip(keys, leaves, strict=True)])
        one, back, two, far_back = (along(run, params, batch, direction, k * h) for k in (1, -1, 2, -2))
        numeric = (8 * (one - back) - (two - far_back)) / (12 * h)
        exact = sum(float(jnp.vdot(g, d)) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
        worst = max(worst, abs(exact / numeric - 1))
    return worst


@pytest.mark.parametrize(("descriptor", "steps"), [("dpa2", 5), *((name, 20) for name in models.DESCRIPTORS)])
def test_gradient_through_few_steps_of_a_net_is_that_of_finite_differences(descriptor, steps):
    potential = models.bound(descriptor)
    assert net_gradient_error(potential, models.params_of(potential), steps, seeds=(1, 2)) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("steps", [50, 200])
def test_gradient_through_many_steps_of_a_trained_dpa2_is_that_of_finite_differences(steps):
    potential, params = lamjax.load(DEMO, dtype=np.float64)
    assert net_gradient_error(potential, params, steps, seeds=(1,), h=2e-6) < 1e-6


def pair_of_dimers(potential, starts, targets):
    """A batch of copper dimers of given lengths (Å); None is an empty row."""
    rows = []
    for start, target in zip(starts, targets, strict=True):
        system = lamjax.system.host_system(ase.Atoms("Cu2", positions=[(0, 0, 0), (start or 2.5, 0, 0)]))
        lists = neighbors.host_neighbors(system, potential.shells, (4,), 1)
        end = system._replace(positions=np.array([[0, 0, 0], [target or 0.0, 0, 0]]))
        there = neighbors.host_neighbors(end, potential.shells, (4,), 1)
        labels = Labels(np.array(-0.3), np.zeros((2, 3)), np.zeros((3, 3)), np.array([1.0, 0, 0]))
        row = StructureBatch(system, lists, end, there, labels, np.zeros((2, 3), bool))
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


STARTS, TARGETS = (2.2, 2.3, 2.05, None, 2.9), (2.6, 2.0, 2.7, None, 2.5)


@pytest.fixture(scope="module")
def relaxed_dimers():
    """Dimers after five steps: the potential, its parameters, their batch, and lengths (Å) and energies (eV)."""
    potential = models.morse()
    params = models.params_of(potential)
    batch = pair_of_dimers(potential, STARTS, TARGETS)
    run = jax.jit(lambda system, lists: lamjax.relax(potential, params, system, lists, FIVE_STEPS))
    ends = [run(*pytree.take((batch.start, batch.neighbors), k)) for k, start in enumerate(STARTS) if start]
    lengths = np.array([np.linalg.norm(np.subtract(*end.system.positions)) for end in ends])
    return potential, params, batch, lengths, np.array([end.energy for end in ends])


FIVE_STEPS = RelaxConfig(adjoint=Unrolled(5))
PRESENT = [k for k, start in enumerate(STARTS) if start]
COPPER = ase.data.atomic_masses[29]


def dq_of(lengths) -> np.ndarray:
    """amu^1/2 Å: two equal atoms share the difference of the lengths, whatever the directions."""
    return np.abs(lengths - np.array([TARGETS[k] for k in PRESENT])) * np.sqrt(COPPER / 2)


@pytest.mark.parametrize("kind", ["rmsd", "squared", "bounded"])
def test_kinds_are_functions_of_the_distance(relaxed_dimers, kind):
    potential, params, batch, lengths, _ = relaxed_dimers
    config = StructureLossConfig(FIVE_STEPS, DistanceConfig(kind, scale=2.0))
    value, metrics = jax.jit(structure_loss(potential, config))(params, batch)
    dq = dq_of(lengths)
    assert len(np.unique(dq.round(6))) == len(dq) == 4  # the mean is not the median
    rmsd = dq / np.sqrt(2 * COPPER)
    expected = {"rmsd": rmsd, "squared": dq**2, "bounded": dq / (2.0 + dq)}[kind]
    assert value == pytest.approx(expected.mean(), rel=1e-9)
    assert metrics["dq_mean"] == pytest.approx(dq.mean(), rel=1e-9)
    assert metrics["dq_median"] == pytest.approx(np.median(dq), rel=1e-9)
    assert metrics["rmsd"] == pytest.approx(rmsd.mean(), rel=1e-9)
    assert metrics["largest_displacement"] == pytest.approx(rmsd.max(), rel=1e-9)
    assert metrics["n_structures"] == 4 and metrics["n_steps"] == 5


def test_energies_count_per_atom_where_the_target_has_one(relaxed_dimers):
    potential, params, batch, lengths, energies = relaxed_dimers
    labels = batch.labels._replace(
        energy=np.array([-0.1, -0.7, 5.0, 0.0, -0.4]),
        weights=np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]], float),
    )
    batch = batch._replace(labels=labels)
    loss = jax.jit(structure_loss(potential, StructureLossConfig(FIVE_STEPS, energy=0.3)))
    each = dq_of(lengths) + 0.3 * np.abs(energies - labels.energy[PRESENT]) / 2 * [1, 1, 0, 1]
    assert loss(params, batch)[0] == pytest.approx(each.mean(), rel=1e-9)
    three = jax.tree.map(lambda x: np.where(np.arange(5).reshape(-1, *[1] * (np.ndim(x) - 1)) < 4, x, 0), batch)
    value, metrics = loss(params, three._replace(neighbors=batch.neighbors))
    assert value == pytest.approx(each[:3].mean(), rel=1e-9)
    assert metrics["dq_median"] == pytest.approx(np.median(dq_of(lengths)[:3]), rel=1e-9)  # of an odd number


def test_what_moved_too_far_is_left_out(relaxed_dimers):
    potential, params, batch, lengths, _ = relaxed_dimers
    moved = np.abs(lengths - np.array([STARTS[k] for k in PRESENT])) / 2  # Å, of either atom
    limit = float(np.sort(moved)[1:3].mean())
    config = StructureLossConfig(FIVE_STEPS, max_motion=limit)
    value, metrics = jax.jit(structure_loss(potential, config))(params, batch)
    assert metrics["n_structures"] == metrics["n_dropped"] == 2
    assert value == pytest.approx(dq_of(lengths)[moved <= limit].mean(), rel=1e-9)


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"scale": -1.0}, {"cell": -0.1}])
def test_settings_of_a_distance_are_checked(wrong):
    with pytest.raises(ValueError, match="scale must be above 0|cell must be at least 0"):
        DistanceConfig(**wrong)


def test_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="kind: 'cubed' is not supported; supported: dq, rmsd, squared, bounded"):
        DistanceConfig(kind="cubed")
