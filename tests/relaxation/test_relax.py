"""Relaxations end where ASE's do, each structure on its own, and fail as data."""

import ase
import ase.build
import ase.calculators.calculator
import ase.optimize
import bound_models as models
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_md import minimize, space
from pydantic import TypeAdapter

import lamjax
from lamjax import classical, neighbors, pytree
from lamjax.relaxation import (
    FireConfig,
    Hybrid,
    Implicit,
    LBFGSConfig,
    RelaxConfig,
    Unrolled,
    UntilConverged,
    relax,
    relax_structures,
)
from lamjax.system import System, host_system, pad

TIGHT = RelaxConfig(fmax=1e-3, max_steps=2000)
FCC = np.array([(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)])


class Calculator(ase.calculators.calculator.Calculator):
    """The same potential for ASE's optimisers."""

    implemented_properties = ("energy", "forces")

    def __init__(self, potential, params):
        super().__init__()
        self.potential, self.params = potential, params
        self.run = jax.jit(lambda system, lists: lamjax.predict(potential, params, system, lists))

    def calculate(self, atoms=None, properties=("energy",), system_changes=ase.calculators.calculator.all_changes):
        super().calculate(atoms, properties, system_changes)
        system = host_system(self.atoms)
        widths = tuple(shell.sel or 64 for shell in self.potential.shells)
        out = self.run(system, neighbors.host_neighbors(system, self.potential.shells, widths, n_offsets=343))
        self.results = {"energy": float(out.energy), "forces": np.asarray(out.forces)}


def rattled(atoms: ase.Atoms, seed: int = 0, size: float = 0.12) -> ase.Atoms:
    atoms.rattle(size, seed=seed)
    return atoms


def cluster(seed: int = 0, n: int = 6) -> ase.Atoms:
    """Atoms of a compact piece of fcc, without a cell."""
    atoms = ase.build.bulk("Cu", "fcc", a=3.6, cubic=True) * (2, 2, 2)
    order = np.argsort(np.linalg.norm(atoms.positions - atoms.positions.mean(axis=0), axis=1), kind="stable")
    return rattled(ase.Atoms("Cu" * n, positions=atoms.positions[order[:n]]), seed)


def tetrahedron(seed: int = 0) -> ase.Atoms:
    return cluster(seed, n=4)


def crystal(seed: int = 0) -> ase.Atoms:
    return rattled(ase.build.bulk("Cu", "fcc", a=3.5, cubic=True), seed)


def skewed(seed: int = 0) -> ase.Atoms:
    cell = [[3.4, 0, 0], [1.5, 3.3, 0], [-1.2, 1, 3.5]]
    return rattled(ase.Atoms("Cu2", positions=[(0, 0, 0), (1.8, 1.9, 0.3)], cell=cell, pbc=True), seed)


def boride(seed: int = 0) -> ase.Atoms:
    """Close-packed silicon with every fourth atom boron, near the bond length of `models.bound`."""
    return rattled(ase.Atoms("Si3B", positions=FCC * 3.4, cell=[3.4] * 3, pbc=True), seed, 0.05)


def batch(systems, shells, capacity: int, n_offsets: int):
    n = max(s.n_atoms for s in systems)
    systems = [pad(jax.tree.map(np.asarray, s), n) for s in systems]
    lists = [neighbors.host_neighbors(s, shells, (capacity,) * len(shells), n_offsets) for s in systems]
    return pytree.stack(systems), pytree.stack(lists)


LJ = classical.lennard_jones(sigma=2.3, epsilon=0.3, cutoff=5.0, switch_start=3.8)


@pytest.mark.parametrize(
    ("potential", "makers"),
    [
        (LJ, (crystal, tetrahedron)),
        (models.morse(), (crystal, skewed)),
        *((models.bound(descriptor), (boride,)) for descriptor in models.DESCRIPTORS),
    ],
    ids=["lennard-jones", "morse", *models.DESCRIPTORS],
)
def test_minimum_is_that_of_ase(potential, makers):
    params = models.params_of(potential)
    starts = [make(seed) for make in makers for seed in (0, 1)]
    relaxed = relax_structures(potential, params, [lamjax.from_ase(a) for a in starts], TIGHT, slots=4)
    calculator = Calculator(potential, params)
    for atoms, result in zip(starts, relaxed, strict=True):
        atoms.calc = calculator
        assert ase.optimize.FIRE(atoms, logfile=None).run(fmax=1e-3, steps=2000)
        assert result.converged and result.finite and not result.overflow
        assert result.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
        assert result.fmax == pytest.approx(np.linalg.norm(result.forces, axis=1).max())


def test_steps_are_those_of_jax_md():
    potential = models.morse()
    params = models.params_of(potential)
    system = lamjax.from_ase(cluster(n=8))
    lists = lamjax.allocate(potential, system)
    init, step = minimize.fire_descent(
        lambda x: potential.energy(params, system._replace(positions=x), lists),
        space.free()[1],
        alpha_start=0.125,  # jax-md rounds its numbers to float16, lamjax keeps dt_start and alpha_start exact
    )

    def plain(x):
        start = init(x).set(dt=jnp.float64(0.1), alpha=jnp.float64(0.125))
        return jax.lax.fori_loop(0, 30, lambda _, state: step(state), start).position

    config = RelaxConfig(fmax=0.0, minimiser=FireConfig(alpha_start=0.125, max_step=None), adjoint=Unrolled(30))
    ours = jax.jit(lambda s, n: relax(potential, params, s, n, config))(system, lists)
    np.testing.assert_allclose(ours.system.positions, jax.jit(plain)(system.positions), rtol=0, atol=1e-10)
    assert ours.n_steps == 30


def test_batch_is_singles_and_each_stops_by_itself():
    potential = models.morse()
    params = models.params_of(potential)
    systems = [lamjax.from_ase(a) for a in (cluster(0), cluster(1, n=4), crystal(2))]
    systems[1] = relax_structures(potential, params, systems[1:2], TIGHT, slots=1)[0].system  # starts relaxed
    config = RelaxConfig(fmax=0.01)
    stacked, lists = batch(systems, potential.shells, 64, 125)
    run = jax.jit(chex.assert_max_traces(lambda s, n: relax(potential, params, s, n, config), n=2))
    together = run(stacked, lists)
    for k in range(3):
        alone = run(*pytree.take((stacked, lists), k))
        assert alone.n_steps == together.n_steps[k]
        np.testing.assert_allclose(together.system.positions[k], alone.system.positions, rtol=0, atol=1e-9)
        np.testing.assert_allclose(together.energy[k], alone.energy, rtol=0, atol=1e-10)
    assert together.converged.all()
    assert together.n_steps[1] == 0 and together.n_steps[0] > 5
    np.testing.assert_array_equal(together.system.positions[1], stacked.positions[1])
    padded = stacked.numbers == 0
    np.testing.assert_array_equal(together.system.positions[padded], 0)


def test_unrolled_freezes_what_has_converged():
    potential = models.morse()
    params = models.params_of(potential)
    system, lists = batch([lamjax.from_ase(a) for a in (cluster(0), cluster(1))], potential.shells, 32, 1)
    run = jax.jit(lambda config: relax(potential, params, system, lists, config), static_argnums=0)
    until = run(RelaxConfig(fmax=0.02))
    unrolled = run(RelaxConfig(fmax=0.02, adjoint=Unrolled(150)))
    assert until.converged.all() and (until.n_steps < 150).all()
    chex.assert_trees_all_close(until, unrolled, rtol=0, atol=1e-9)


def test_not_converged_is_reported_and_steps_run_out():
    potential = models.morse()
    with pytest.warns(UserWarning, match=r"1 of 1 structures did not converge to 1e-06 .*: slow one\. Raise"):
        (result,) = relax_structures(
            potential,
            models.params_of(potential),
            [lamjax.from_ase(cluster())],
            RelaxConfig(fmax=1e-6, max_steps=3),
            slots=1,
            names=["slow one"],
        )
    assert not result.converged and result.n_steps == 3 and result.finite


def test_overflow_is_reported_and_the_host_grows_the_list():
    """A chain that curls up: its atoms gain neighbours on the way."""
    potential = classical.morse(depth=2.0, width=0.8, distance=1.5, cutoff=4.0, switch_start=3.0)
    params = models.params_of(potential)
    chain = ase.Atoms("Cu12", positions=[(2.3 * k, 0.5 * (k % 2), 0.4 * (k % 3)) for k in range(12)])
    system = lamjax.from_ase(chain)
    lists = lamjax.allocate(potential, system)
    narrow = jax.jit(lambda s, n: relax(potential, params, s, n))(system, lists)
    assert narrow.overflow and not narrow.converged
    assert narrow.largest_counts[0] > lists.capacities[0]
    (grown,) = relax_structures(potential, params, [system], RelaxConfig(fmax=1e-3), slots=1)
    assert grown.converged and not grown.overflow
    wide = lamjax.allocate(potential, system, capacity=12)
    expected = jax.jit(lambda s, n: relax(potential, params, s, n, RelaxConfig(fmax=1e-3)))(system, wide)
    np.testing.assert_allclose(grown.energy, expected.energy, atol=1e-9)


def test_what_is_not_finite_is_kept_out_and_named():
    def cliff(params, r):  # falls ever faster: the forces become infinite on the way
        return -1.0 / jnp.maximum(r - 1.0, 0) ** 2 + 0 * params["depth"]

    falling = classical.pair_potential(cliff, {"depth": 1.0}, 5.0)
    dimer = lamjax.from_ase(ase.Atoms("Cu2", positions=[(0, 0, 0), (1.6, 0, 0)]))
    config = RelaxConfig(fmax=0.01, max_steps=60)
    with pytest.warns(UserWarning, match="infinite or NaN in 1 of 1 structures: number 0"):
        (result,) = relax_structures(falling, models.params_of(falling), [dimer], config, slots=1)
    assert not result.finite and not result.converged
    assert np.isfinite(result.system.positions).all() and np.isfinite(result.energy)


def test_sizes_are_mixed_and_order_is_kept():
    potential = models.morse()
    systems = [lamjax.from_ase(a) for a in (crystal(), cluster(n=3), cluster(n=9), cluster(2, n=3))]
    results = relax_structures(potential, models.params_of(potential), systems, RelaxConfig(fmax=0.05), slots=2)
    for system, result in zip(systems, results, strict=True):
        np.testing.assert_array_equal(system.numbers, result.system.numbers)
        assert result.system.positions.shape == system.positions.shape == result.forces.shape
        assert result.converged


def test_unknown_element_is_an_error():
    with pytest.raises(ValueError, match=r"Element Cu is not in the model's type map \[Si, B\]"):
        relax_structures(models.bound("dpa2"), None, [lamjax.from_ase(crystal())])


def test_precision_is_that_of_the_system():
    potential = models.morse()
    system = lamjax.from_ase(cluster(), np.float32)
    run = jax.jit(lambda params, s, n: relax(potential, params, s, n))
    result = run(potential.init(dtype=np.float32), system, lamjax.allocate(potential, system))
    assert result.system.positions.dtype == np.float32 and result.forces.dtype == np.float32
    assert result.converged


def test_longest_step_is_limited():
    potential = models.morse()
    system = lamjax.from_ase(ase.Atoms("Cu2", positions=[(0, 0, 0), (1.2, 0, 0)]))
    lists = lamjax.allocate(potential, system)
    config = RelaxConfig(fmax=0.0, minimiser=FireConfig(dt_start=0.4, max_step=0.01), adjoint=Unrolled(1))
    result = jax.jit(lambda s, n: relax(potential, models.params_of(potential), s, n, config))(system, lists)
    moved = result.system.positions - system.positions
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 0.01, rtol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FireConfig(dt_start=0.5, dt_max=0.4),
        lambda: FireConfig(max_step=0.0),
        lambda: RelaxConfig(fmax=-1),
        lambda: Unrolled(0),
        lambda: Unrolled(5, segment=6),
        lambda: UntilConverged(max_steps=-1),
        lambda: UntilConverged(checkpoints=1),
        lambda: Implicit(tol=0.0),
        lambda: Implicit(tol=1.0),
        lambda: Implicit(max_iterations=0),
        lambda: Implicit(polish=-1),
        lambda: Implicit(damping=-1.0),
        lambda: Implicit(gate=0.0),
        lambda: Hybrid(window=0),
    ],
)
def test_impossible_settings_are_errors(make):
    with pytest.raises(ValueError, match="got|must"):
        make()


def test_config_is_hashable_and_survives_json():
    adapter, lbfgs = TypeAdapter(RelaxConfig), RelaxConfig(minimiser=LBFGSConfig(memory=4))
    free = RelaxConfig(fmax=0, adjoint=Unrolled(20, 5), minimiser=FireConfig(max_step=None))
    for config in (RelaxConfig(), free, lbfgs):
        assert adapter.validate_json(adapter.dump_json(config)) == config
        assert hash(config) == hash(adapter.validate_json(adapter.dump_json(config)))
    assert isinstance(RelaxConfig().adjoint, UntilConverged)


def test_empty_rows_and_perfect_crystals_stand_still():
    potential = models.morse()
    perfect = lamjax.from_ase(ase.build.bulk("Cu", "fcc", a=3.6))
    systems, lists = batch([perfect, lamjax.from_ase(cluster(n=4))], potential.shells, 64, 343)
    empty = jax.tree.map(np.zeros_like, (systems, lists))
    systems, lists = jax.tree.map(lambda a, b: np.concatenate([a, b[:1]]), (systems, lists), empty)
    assert isinstance(systems, System)
    for adjoint in (UntilConverged(), Unrolled(40)):
        config = RelaxConfig(fmax=0.02, adjoint=adjoint)
        result = jax.jit(lambda s, n, c=config: relax(potential, models.params_of(potential), s, n, c))(systems, lists)
        assert not result.overflow.any() and result.finite.all()
        np.testing.assert_array_equal(result.n_steps[jnp.array([0, 2])], 0)
        np.testing.assert_array_equal(result.system.positions[0], systems.positions[0])
