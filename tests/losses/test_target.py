"""Losses at the target, and through the minimum: gradients are those of differences, what cannot count is counted."""

import ase
import ase.build
import bound_models as models
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lamjax
from lamjax import neighbors, pytree
from lamjax.data import StructureBatch
from lamjax.losses import (
    DistanceConfig,
    ForceTargetConfig,
    NewtonTargetConfig,
    StructureLossConfig,
    newton_loss,
    structure_loss,
    target_force_loss,
    with_minimiser,
)
from lamjax.relaxation import CellConfig, FireConfig, GradientFlowConfig, Hybrid, Implicit, RelaxConfig, Unrolled
from lamjax.system import Labels, host_system

SHARP = Implicit(tol=1e-10, polish=5)


def batch_of(n: int = 2) -> StructureBatch:
    """Strained crystals whose target is another strained crystal, and an empty row."""
    shells, rows = models.morse().shells, []
    for k in range(n):
        systems = []
        for seed in (k, 10 + k):
            atoms = ase.build.bulk("Cu", "fcc", a=3.5, cubic=True)
            atoms.rattle(0.1, seed=seed)
            turn = np.eye(3) + 0.02 * np.random.default_rng(seed).normal(size=(3, 3))
            atoms.set_cell(atoms.cell.array @ turn, scale_atoms=True)
            systems.append(host_system(atoms))
        start, target = systems
        offsets = neighbors.image_offsets(0.8 * start.cell, start.pbc, shells[0].cutoff)
        lists = [neighbors.host_neighbors(s, shells, (120,))._replace(offsets=offsets) for s in (start, target)]
        labels = Labels(np.array(-12.0 - k), np.zeros((4, 3)), np.zeros((3, 3)), np.array([1.0, 0, 0]))
        rows.append(StructureBatch(start, lists[0], target, lists[1], labels, np.zeros((4, 3), bool)))
    return pytree.stack([*rows, jax.tree.map(np.zeros_like, rows[0])])


def gradient_error(loss, params, batch, h: float = 2e-6) -> tuple[float, dict]:
    """Relative deviation of a directional derivative from differences, and the metrics."""
    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, metrics), gradient = run(params, batch)
    assert np.isfinite(value) and all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    along = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=float)).reshape(x.shape), params)
    exact = sum(float(jnp.vdot(a, b)) for a, b in zip(*map(jax.tree.leaves, (gradient, along)), strict=True))

    def moved(t: float) -> float:
        return float(run(jax.tree.map(lambda p, d: p + t * h * d, params, along), batch)[0][0])

    numeric = (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / (12 * h)
    assert abs(numeric) > 1e-3
    return abs(exact / numeric - 1), metrics


@pytest.mark.parametrize("cell", [None, CellConfig(pressure=0.02)], ids=["fixed cell", "cell"])
@pytest.mark.parametrize("adjoint", [SHARP, Hybrid(6, SHARP)], ids=["implicit", "hybrid"])
def test_structure_loss_at_the_minimum(adjoint, cell):
    """Distance, cell and energy in one loss; the linear solve is part of it and says how it went."""
    potential = models.morse()
    relax = RelaxConfig(fmax=1e-3, max_steps=2000, adjoint=adjoint, cell=cell)
    config = StructureLossConfig(relax, DistanceConfig("bounded", cell=20.0 if cell else 0.0), energy=0.5, window=0.7)
    error, metrics = gradient_error(structure_loss(potential, config), models.params_of(potential), batch_of())
    assert error < 1e-6
    assert metrics["n_structures"] == 2 and metrics["n_gated"] == 0 and metrics["n_negative"] == 0
    assert 3 < metrics["iterations"] < 40 and 0 < metrics["residual"] < 1e-9
    assert ("dq_window" in metrics) == isinstance(adjoint, Hybrid)


def test_structure_loss_on_the_way_with_cell_and_energy():
    potential = models.morse()
    relax = RelaxConfig(fmax=0, adjoint=Unrolled(15), cell=CellConfig())
    config = StructureLossConfig(relax, DistanceConfig("rmsd", cell=2.0), energy=0.5)
    error, metrics = gradient_error(structure_loss(potential, config), models.params_of(potential), batch_of())
    assert error < 1e-7 and metrics["strain"] > 0


def test_numbers_of_the_minimiser_are_learned_with_the_potential():
    potential = models.morse()
    relax = RelaxConfig(fmax=0, adjoint=Unrolled(10), minimiser=GradientFlowConfig(eta=0.03, additive=True))
    params = with_minimiser(models.params_of(potential), relax)
    assert params.minimiser.keys() == {"eta", "additive"}
    error, _ = gradient_error(structure_loss(potential, StructureLossConfig(relax)), params, batch_of())
    assert error < 1e-7
    assert with_minimiser({}, RelaxConfig(minimiser=FireConfig(dt_start=0.2))).minimiser["dt_start"] == 0.2


def test_what_is_no_minimum_is_gated_and_counted():
    potential = models.morse()
    relax = RelaxConfig(fmax=1e-3, max_steps=3, adjoint=Implicit())
    loss = structure_loss(potential, StructureLossConfig(relax))
    (value, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        models.params_of(potential), batch_of()
    )
    assert value > 0 and metrics["n_gated"] == 2 and metrics["converged"] == 0
    assert all(g == 0 for g in gradient.values())


@pytest.mark.parametrize("cell", [None, CellConfig(pressure=0.02)], ids=["fixed cell", "cell"])
def test_force_at_the_target(cell):
    potential = models.morse()
    loss = target_force_loss(potential, ForceTargetConfig(cell))
    error, metrics = gradient_error(loss, models.params_of(potential), batch_of())
    assert error < 1e-8 and metrics["n_structures"] == 2 and metrics["fmax"] > 0.1 and metrics["force_rms"] > 0.1


def test_force_at_the_target_is_that_of_the_potential():
    potential = models.morse()
    batch, params = batch_of(), models.params_of(potential)
    value, metrics = jax.jit(target_force_loss(potential))(params, batch)
    targets = [pytree.take(batch.target, k) for k in range(2)]
    forces = [lamjax.predict(potential, params, s, lamjax.allocate(potential, s)).forces for s in targets]
    assert value == pytest.approx(np.mean([np.sum(np.square(f)) / 4 for f in forces]), rel=1e-9)
    assert metrics["force_rms"] == pytest.approx(np.sqrt(value), rel=1e-9)
    assert metrics["fmax"] == pytest.approx(max(np.linalg.norm(f, axis=1).max() for f in forces), rel=1e-9)


@pytest.mark.parametrize("cell", [None, CellConfig(pressure=0.02)], ids=["fixed cell", "cell"])
@pytest.mark.parametrize("kind", ["squared", "bounded"])
def test_newton_at_the_target(kind, cell):
    potential = models.morse()
    config = NewtonTargetConfig(cell, DistanceConfig(kind, cell=5.0), Implicit(tol=1e-11, damping=0.3))
    error, metrics = gradient_error(newton_loss(potential, config), models.params_of(potential), batch_of())
    assert error < 1e-6 and metrics["n_negative"] == 0 and metrics["newton_dq"] > 0
    assert metrics["n_damped"] == (2 if cell else 0)  # so far from a minimum the cell is not stable


def test_newton_step_is_the_distance_to_a_near_minimum():
    """Close to a minimum the step of the loss is the error of the relaxation, and flattening does not help."""
    potential = models.morse()
    params = models.params_of(potential)
    batch = batch_of(1)
    relax = RelaxConfig(fmax=1e-8, max_steps=3000, adjoint=Unrolled(600))
    structure = jax.jit(structure_loss(potential, StructureLossConfig(relax)))
    config = NewtonTargetConfig(None, DistanceConfig("dq"), Implicit(tol=1e-8))
    newton = jax.jit(newton_loss(potential, config))
    perfect = ase.build.bulk("Cu", "fcc", a=3.5, cubic=True)
    perfect.rattle(1e-3, seed=3)
    near = host_system(perfect)
    lists = neighbors.host_neighbors(near, potential.shells, (120,))
    lists = lists._replace(offsets=np.asarray(batch.neighbors.offsets[0]))
    fill = lambda new, old: np.stack([new, old[1]])  # noqa: E731
    batch = batch._replace(
        start=jax.tree.map(fill, near, batch.start),
        target=jax.tree.map(fill, near, batch.target),
        neighbors=jax.tree.map(fill, lists, batch.neighbors),
        target_neighbors=jax.tree.map(fill, lists, batch.target_neighbors),
    )
    far = float(structure(params, batch)[0])
    assert float(newton(params, batch)[0]) == pytest.approx(far, rel=1e-2)
    flat = params | {"depth": params["depth"] / 10}
    assert float(newton(flat, batch)[0]) == pytest.approx(far, rel=1e-2)


def test_single_precision_gives_nearly_the_same():
    """Positions and parameters in float32 while energies are summed in float64."""
    potential = models.morse()
    relax = RelaxConfig(fmax=2e-3, max_steps=500, adjoint=Implicit(tol=1e-4))
    run = jax.jit(jax.value_and_grad(structure_loss(potential, StructureLossConfig(relax)), has_aux=True))
    both = [run(*pytree.cast((models.params_of(potential), batch_of(1)), t)) for t in (np.float32, np.float64)]
    ((single, _), g32), ((double, _), g64) = both
    assert single == pytest.approx(float(double), rel=1e-2)
    for name in g64:
        assert g32[name].dtype == np.float32
        assert float(g32[name]) == pytest.approx(float(g64[name]), rel=0.05, abs=1e-2)


@pytest.mark.parametrize("kind", ["implicit", "hybrid", "newton"])
def test_second_derivatives_through_a_solve_are_refused(kind):
    """They would lack the derivative of the solve, and be wrong without a word."""
    potential = models.morse()
    if kind == "newton":
        loss = newton_loss(potential, NewtonTargetConfig())
    else:
        adjoint = SHARP if kind == "implicit" else Hybrid(2, SHARP)
        loss = structure_loss(potential, StructureLossConfig(RelaxConfig(max_steps=5, adjoint=adjoint)))
    value, batch, params = lambda q: loss(q, batch)[0], batch_of(1), models.params_of(potential)
    jax.eval_shape(jax.grad(value), params)
    for twice in (jax.hessian, lambda f: jax.jacfwd(jax.grad(f)), lambda f: jax.grad(lambda q: sum_of(jax.grad(f)(q)))):
        with pytest.raises((TypeError, ValueError), match=r"first derivatives of a minimum alone|Reverse-mode"):
            jax.eval_shape(twice(value), params)


def sum_of(tree):
    return sum(jnp.sum(x) for x in jax.tree.leaves(tree))
