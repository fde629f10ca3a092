"""Every adjoint gives the derivative of where the relaxation really ends: against differences of relaxations."""

import functools
from importlib import resources
from pathlib import Path

import ase
import ase.build
import bound_models as models
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lamjax
from lamjax import neighbors, pytree
from lamjax.data import pack_pairs, read_pairs
from lamjax.losses.geometry import structure_error
from lamjax.relaxation import (
    CellConfig,
    FireConfig,
    GradientFlowConfig,
    Hybrid,
    Implicit,
    LBFGSConfig,
    RelaxConfig,
    Unrolled,
    UntilConverged,
    implicit,
    minimiser,
    relax,
    surface,
)
from lamjax.system import System, host_system

FILE = Path(__file__).parent.parent / "fixtures" / "si_defects" / "sub_B_1.extxyz"
DEMO = str(resources.files("lamjax") / "assets" / "demo" / "base.lamjax")
FCC = np.array([(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)])
PRESSED = CellConfig(pressure=0.01)
SOME = CellConfig(pressure=0.01, components=(True, True, True, True, False, False))
SHARP = Implicit(tol=1e-10, polish=5)


def strained() -> ase.Atoms:
    atoms = ase.build.bulk("Cu", "fcc", a=3.5, cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.03 * np.random.default_rng(0).normal(size=(3, 3))), True)
    return atoms


def cluster() -> ase.Atoms:
    atoms = ase.Atoms("Cu5", positions=[(0, 0, 0), (2.4, 0, 0), (1.2, 2.2, 0.1), (1.3, 0.7, 2.0), (-1.2, 1.5, 1.4)])
    return atoms


def roomy(system: System, shells, smallest: float = 0.7) -> neighbors.Neighbors:
    """Neighbours with slots and images for a cell that shrinks so far."""
    system = jax.tree.map(np.asarray, system)
    small = system._replace(cell=smallest * system.cell, positions=smallest * system.positions)
    widths = neighbors.plan_capacities(neighbors.count(small, shells), shells)
    lists = neighbors.host_neighbors(system, shells, widths)
    offsets = neighbors.image_offsets(small.cell, system.pbc, shells[0].cutoff)
    return jax.tree.map(jnp.asarray, lists._replace(offsets=offsets))


@functools.cache
def lists_of(make) -> tuple[System, neighbors.Neighbors]:
    system = lamjax.from_ase(make())
    return system, roomy(system, models.morse().shells, 0.8)


def number(relaxed) -> jax.Array:
    """Something smooth of structure, cell and energy that rigid motions of a crystal do not change."""
    x, cell = relaxed.system.positions, relaxed.system.cell
    weights = np.random.default_rng(3).normal(size=x.shape)
    apart = jnp.linalg.norm(x[1:] - x[:1], axis=1)  # turning a molecule does not change them
    metric = jnp.sum(np.random.default_rng(4).normal(size=(3, 3)) * (cell @ cell.T))
    return jnp.sum(jnp.sin(apart) * weights[1:, 0]) + 0.1 * metric + 0.3 * relaxed.energy


def gradient_error(make, config: RelaxConfig, by_start: bool, h: float = 2e-6, **options) -> float:
    """Relative deviation of the directional derivative by parameters (and start and cell) from differences."""
    potential = models.morse()
    params, (system, lists) = models.params_of(potential), lists_of(make)

    def value(params, positions, cell):
        start = system._replace(positions=positions, cell=cell)
        relaxed = relax(potential, params, start, lists, config, **options)
        return number(relaxed), relaxed

    run = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True))
    at = params, system.positions, system.cell
    scale = float(by_start)
    along = (
        {"depth": 1.0, "width": 0.7, "distance": -0.8},
        scale * jax.random.normal(jax.random.key(1), system.positions.shape),
        scale * jax.random.normal(jax.random.key(2), (3, 3)) * system.pbc,
    )
    (_, relaxed), gradient = run(*at)
    assert not relaxed.overflow and relaxed.finite
    exact = sum(float(jnp.vdot(a, b)) for a, b in zip(*map(jax.tree.leaves, (gradient, along)), strict=True))

    def moved(t: float) -> float:
        return float(run(*jax.tree.map(lambda x, d: x + t * d, at, along))[0][0])

    numeric = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
    assert abs(numeric) > 1e-2
    return abs(exact / numeric - 1)


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (strained, RelaxConfig(fmax=0, adjoint=Unrolled(20))),
        (strained, RelaxConfig(fmax=0, adjoint=Unrolled(50, segment=7), cell=PRESSED)),
        (strained, RelaxConfig(fmax=0, max_steps=43, adjoint=UntilConverged(checkpoints=5), cell=SOME)),
        (strained, RelaxConfig(fmax=0, adjoint=Unrolled(30), cell=CellConfig(keep="shape"), skin=0)),
        (cluster, RelaxConfig(fmax=0.2, adjoint=UntilConverged())),
        (cluster, RelaxConfig(fmax=0, adjoint=Unrolled(25), minimiser=GradientFlowConfig(eta=0.05))),
        (strained, RelaxConfig(fmax=0.01, adjoint=UntilConverged(), cell=PRESSED, minimiser=LBFGSConfig(memory=4))),
        (
            cluster,
            RelaxConfig(fmax=0, adjoint=Unrolled(12, segment=5), minimiser=LBFGSConfig(curvature=0.8, max_step=2.0)),
        ),
    ],
    ids=[
        "fixed cell",
        "cell, segments",
        "four components, checkpoints",
        "shape kept, no skin",
        "until converged",
        "flow",
        "l-bfgs, cell",
        "l-bfgs, segments, a step too far",
    ],
)
def test_backpropagation_through_time_is_exact(make, config):
    assert gradient_error(make, config, by_start=True) < 1e-7


@pytest.mark.parametrize(
    ("make", "cell"),
    [(strained, None), (strained, PRESSED), (strained, SOME), (cluster, None)],
    ids=["fixed cell", "cell", "four components", "molecule"],
)
def test_implicit_gradient_is_that_of_the_converged_relaxation(make, cell):
    """The differences are of relaxations with no force left; nothing depends on the start."""
    config = RelaxConfig(fmax=1e-3, max_steps=2000, adjoint=SHARP, cell=cell)
    assert gradient_error(make, config, by_start=False) < 1e-7


def test_fixed_atoms_stay_and_the_gradient_knows():
    fixed = jnp.zeros((4, 3), bool).at[0].set(True).at[2, 1].set(True)
    for config in (RelaxConfig(fmax=0, adjoint=Unrolled(15)), RelaxConfig(fmax=1e-3, adjoint=SHARP)):
        assert gradient_error(strained, config, by_start=isinstance(config.adjoint, Unrolled), fixed=fixed) < 1e-7
    potential, (system, lists) = models.morse(), lists_of(strained)
    relaxed = jax.jit(lambda p: relax(potential, p, system, lists, fixed=fixed))(models.params_of(potential))
    moved = relaxed.system.positions - system.positions
    np.testing.assert_array_equal(moved[fixed], 0)
    np.testing.assert_array_equal(relaxed.forces[fixed], 0)
    assert np.abs(moved[~fixed]).min() > 1e-4 and relaxed.converged


@pytest.mark.parametrize(
    ("config", "along"),
    [
        (FireConfig(), {"dt_start": 1.0, "alpha_start": 0.7}),
        (GradientFlowConfig(eta=0.05, additive=True), {"eta": 1.0, "additive": 1e-2}),
        (LBFGSConfig(), {"curvature": 30.0}),
    ],
    ids=["fire", "flow", "l-bfgs"],
)
def test_numbers_of_the_minimiser_are_differentiable(config, along):
    potential, (system, lists) = models.morse(), lists_of(cluster)
    params = models.params_of(potential)
    n_steps = 4 if isinstance(config, LBFGSConfig) else 12  # the longer the way, the less the first step matters
    rule = RelaxConfig(fmax=0, adjoint=Unrolled(n_steps), minimiser=config)
    first = minimiser(config).numbers(np.float64)
    assert first.keys() == along.keys()
    run = jax.jit(jax.value_and_grad(lambda n: number(relax(potential, params, system, lists, rule, numbers=n))))
    direction = {k: along[k] * jax.random.normal(jax.random.key(5), v.shape) for k, v in first.items()}
    exact = sum(float(jnp.vdot(a, direction[k])) for k, a in run(first)[1].items())
    # jax-md rounds dt to float32
    h, rel = {"fire": (1e-3, 2e-5), "gradient_flow": (1e-5, 1e-8), "lbfgs": (3e-5, 1e-7)}[config.type]
    plus, minus = (float(run({k: v + s * h * direction[k] for k, v in first.items()})[0]) for s in (1, -1))
    assert exact == pytest.approx((plus - minus) / (2 * h), rel=rel)


def test_hybrid_is_window_and_minimum():
    """Its window is that of Unrolled with as many steps, its end that of Implicit; each with the other's gradient."""
    potential, (system, lists) = models.morse(), lists_of(cluster)
    params = models.params_of(potential)

    def gradients(adjoint, of):
        config = RelaxConfig(fmax=1e-4, adjoint=adjoint)
        value = lambda p: number(of(relax(potential, p, system, lists, config)))  # noqa: E731
        return jax.jit(jax.value_and_grad(value))(params)

    rule = Implicit(tol=1e-8)
    without_energy = lambda r: r._replace(system=r.window, energy=0.0)  # noqa: E731
    hybrid = Hybrid(8, rule)
    pairs = [
        (gradients(hybrid, without_energy), gradients(Unrolled(8), lambda r: r._replace(energy=0.0))),
        (gradients(hybrid, lambda r: r), gradients(rule, lambda r: r)),
    ]
    for (value, gradient), (expected, other) in pairs:
        assert value == pytest.approx(float(expected), rel=1e-6)
        for name in gradient:
            assert gradient[name] == pytest.approx(float(other[name]), rel=1e-4)


def test_no_implicit_gradient_without_a_minimum():
    """Above the gate there is none; at a saddle the solve stops at once."""
    potential = models.morse()
    params = models.params_of(potential)
    system, lists = lists_of(cluster)

    def gradient(config, system):
        run = jax.jit(jax.grad(lambda p: jnp.sum(relax(potential, p, system, lists, config).system.positions ** 2)))
        return [float(g) for g in run(params).values()]

    assert gradient(RelaxConfig(max_steps=2, adjoint=Implicit()), system) == [0, 0, 0]
    line = system._replace(positions=jnp.zeros((5, 3)).at[:, 0].set(2.5 * jnp.arange(5)))
    assert np.isfinite(gradient(RelaxConfig(fmax=1e-3, adjoint=Implicit()), line)).all()


@pytest.mark.parametrize("tries", [0, 1])
def test_damping_is_raised_as_often_as_allowed(tries):
    """Two dimers, stretched beyond and up to the point of inflection of the Morse curve (3.0 Å)."""
    potential, shells = models.morse(), models.morse().shells
    systems = [host_system(ase.Atoms("Cu2", positions=[(0, 0, 0), (r, 0, 0)])) for r in (3.35, 2.8)]
    there = surface.over(potential, pytree.stack(systems), np.zeros((2, 2, 3), bool), None)
    z = there.start()
    lists = pytree.stack([neighbors.host_neighbors(s, shells, (4,), 1) for s in systems])
    params, rhs = models.params_of(potential), jnp.zeros_like(z).at[:, 0, 0].set(1.0).at[:, 1, 0].set(-1.0)
    curved = jax.jit(lambda z: jnp.sum(rhs * there.hessian_product(params, z, lists, rhs), axis=(1, 2)) / 2)
    along = [float(x) for x in curved(z)]
    assert -1.0 < along[0] < -0.1 and along[1] > 0  # the first raise, to 1 eV/Å², makes both positive
    rule = Implicit(tol=1e-8, damping=0.01)
    solve = jax.jit(lambda z: implicit.enough_damping(implicit.hessian(there, params, z, lists), rhs, rule, tries)[1:])
    report, damping = solve(z)
    for k, curvature in enumerate(along):
        raised = curvature < 0 and tries > 0
        assert bool(report.negative[k]) == (curvature < 0 and not raised)
        assert float(damping[k]) == (1.0 if raised else 0.01)


def test_checkpoints_bound_the_memory():
    """Ten times the steps for the same memory, if only so many states may be kept."""
    potential, (system, lists) = models.morse(), lists_of(strained)

    def temporary(adjoint) -> int:
        config = RelaxConfig(fmax=0, adjoint=adjoint)
        value = lambda p: number(relax(potential, p, system, lists, config))  # noqa: E731
        lowered = jax.jit(jax.grad(value)).lower(models.params_of(potential))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    kept = [temporary(UntilConverged(n, checkpoints=20)) for n in (40, 400)]
    every = [temporary(Unrolled(n)) for n in (40, 400)]
    assert kept[1] < 1.3 * kept[0] and kept[1] < every[1] / 2


def random_direction(params):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([jax.random.normal(k, p.shape, p.dtype) for k, p in zip(keys, leaves, strict=True)])


def dot(a, b) -> float:
    return sum(float(jnp.vdot(x, y)) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def parameter_gradient_error(potential, params, start: System, target: System, lists, cell) -> float:
    """Of the structure error at the minimum, along a random direction of all parameters of a potential."""
    config = RelaxConfig(fmax=3e-3, max_steps=800, adjoint=Implicit(tol=1e-9, polish=6), cell=cell)

    def value(params):
        relaxed = relax(potential, params, start, lists, config)
        error = structure_error(relaxed.system, target)
        return error.dq + error.strain, relaxed

    run = jax.jit(jax.value_and_grad(value, has_aux=True))
    (_, relaxed), gradient = run(params)
    assert relaxed.converged and relaxed.fmax < 1e-8
    along = random_direction(params)
    exact = dot(gradient, along)
    h = 3e-6

    def moved(t: float) -> float:
        return float(run(jax.tree.map(lambda p, d: p + t * h * d, params, along))[0][0])

    return abs(exact / ((8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / (12 * h)) - 1)


LAYERS = 1.7 * np.array([(0, 3, 3), (1, 0, 1), (1, 1, 0)])  # three primitive cells of a face-centred lattice


def boride() -> tuple[System, System]:
    """Close-packed silicon with every third layer boron, displaced a little, and displaced more.

    The silicon layers are no mirrors of the crystal: how far from boron they end is a matter of the parameters.
    """
    atoms = ase.Atoms("BSi2", scaled_positions=[(x, 0, 0) for x in (0, 1 / 3, 2 / 3)], cell=LAYERS, pbc=True)
    atoms.rattle(0.05, seed=0)
    start = lamjax.from_ase(atoms)
    atoms.rattle(0.1, seed=1)  # no symmetry says what the derivative is
    return start, lamjax.from_ase(atoms)


@pytest.mark.parametrize(
    ("descriptor", "cell"),
    [
        ("dpa2", None),  # in a fixed cell it is the same program without the rows of the cell
        *(pytest.param(name, None, marks=pytest.mark.slow) for name in models.DESCRIPTORS if name != "dpa2"),
        *((name, CellConfig()) for name in models.DESCRIPTORS),
    ],
)
def test_implicit_gradient_of_a_net(descriptor, cell):
    potential = models.bound(descriptor)
    start, target = boride()
    lists = roomy(start, potential.shells)
    assert parameter_gradient_error(potential, models.params_of(potential), start, target, lists, cell) < 1e-5


@pytest.mark.parametrize(
    "descriptor", [n if n != "dpa2" else pytest.param(n, marks=pytest.mark.slow) for n in models.DESCRIPTORS]
)
def test_every_path_through_a_net_has_its_gradient(descriptor):
    """Steps computed again in a changing cell, the window of a hybrid, gradient flow: one sum, one difference."""
    potential = models.bound(descriptor)
    params, (start, _) = models.params_of(potential), boride()
    lists = roomy(start, potential.shells)
    rules = (
        RelaxConfig(fmax=0, max_steps=4, adjoint=UntilConverged(checkpoints=2), cell=CellConfig(pressure=0.01)),
        RelaxConfig(fmax=0, adjoint=Unrolled(3), minimiser=GradientFlowConfig(eta=0.02)),
        RelaxConfig(fmax=0, max_steps=2, adjoint=Hybrid(2)),
    )

    def value(params):
        ends = [relax(potential, params, start, lists, rule) for rule in rules]
        ends[-1] = ends[-1]._replace(system=ends[-1].window, energy=0.0)  # its end is no minimum
        return sum(number(end) for end in ends)

    run = jax.jit(jax.value_and_grad(value))
    along = random_direction(params)
    exact = dot(run(params)[1], along)
    h = 1e-5

    def moved(t: float) -> float:
        return float(run(jax.tree.map(lambda p, d: p + t * h * d, params, along))[0])

    numeric = (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / (12 * h)
    assert abs(exact / numeric - 1) < 1e-7 and abs(numeric) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("cell", [None, CellConfig()], ids=["fixed cell", "cell"])
def test_implicit_gradient_of_a_trained_dpa2_on_a_real_relaxation(cell):
    potential, params = lamjax.load(DEMO, dtype=np.float64)
    (pair,) = read_pairs(FILE)
    packed = pack_pairs([pair], potential.shells)
    row = jax.tree.map(jnp.asarray, packed.rows[0][0])
    assert parameter_gradient_error(potential, params, row.start, row.target, row.neighbors, cell) < 1e-5
