"""Bands and saddles: barriers of ASE's NEB, and gradients at a saddle by finite differences of it found anew."""

import functools

import ase
import ase.build
import ase.mep
import ase.optimize
import bound_models as models
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lamjax
from lamjax import neighbors
from lamjax.relaxation import (
    DimerConfig,
    Implicit,
    NebConfig,
    RelaxConfig,
    at_saddle,
    dimer,
    implicit,
    interpolate,
    neb,
    relax,
)

POTENTIAL = models.morse()
PARAMS = models.params_of(POTENTIAL)
CONFIG = NebConfig(fmax=0.005, spring=0.5, climb_below=0.3)


@functools.cache
def hop():
    """An atom that hops into the vacancy beside it in a crystal: both ends relaxed, and a list with room."""
    crystal = ase.build.bulk("Cu", "fcc", a=3.45, cubic=True).repeat((2, 2, 2))
    start, end = crystal.copy(), crystal.copy()
    end.positions[1] = crystal.positions[0]
    del start[0], end[0]
    system = lamjax.from_ase(start)
    counts = neighbors.count(system, POTENTIAL.shells)
    widths = tuple(w + 24 for w in neighbors.plan_capacities(counts, POTENTIAL.shells))
    lists = neighbors.allocate(system, POTENTIAL.shells, widths)
    config = RelaxConfig(fmax=1e-6, max_steps=2000)
    run = jax.jit(lambda s, n: relax(POTENTIAL, PARAMS, s, n, config).system)
    return run(system, lists), run(lamjax.from_ase(end), lists), lists


@functools.cache
def band():
    start, end, lists = hop()
    images = interpolate(start, end, 5)
    return images, jax.jit(lambda images: neb(POTENTIAL, PARAMS, images, lists, CONFIG))(images)


def test_the_barrier_is_that_of_ase():
    images, barrier = band()
    assert bool(barrier.converged) and not barrier.overflow and barrier.fmax <= CONFIG.fmax
    assert barrier.ends_fmax <= 1e-5  # they are relaxed
    assert barrier.saddle_fmax <= CONFIG.fmax * 1.01  # the climbing image feels the potential alone
    theirs = [lamjax.to_ase(jax.tree.map(lambda x, k=k: x[k], images)) for k in range(5)]
    for atoms in theirs:
        atoms.calc = lamjax.Calculator((POTENTIAL, PARAMS))
    chain = ase.mep.NEB(theirs, k=CONFIG.spring, climb=True, method="improvedtangent")
    ase.optimize.FIRE(chain, logfile=None).run(fmax=CONFIG.fmax, steps=500)
    energies = [atoms.get_potential_energy() for atoms in theirs]
    assert barrier.barrier == pytest.approx(max(energies) - energies[0], abs=1e-3) and barrier.barrier > 0.05
    np.testing.assert_allclose(barrier.energies, energies, atol=2e-3)
    assert barrier.energies[0] == pytest.approx(float(barrier.energies[-1]), abs=1e-6)  # the crystal is the same
    assert barrier.reverse_barrier == pytest.approx(float(barrier.barrier), abs=1e-6)
    np.testing.assert_array_equal(barrier.images.positions[0], images.positions[0])
    assert 0 < barrier.distances[int(barrier.highest)] < barrier.distances[-1]


def test_the_gradient_at_the_saddle_is_that_of_finite_differences():
    """Of a bond at the saddle, and of the barrier's energy; the saddle is found anew with the changed parameters."""
    _, barrier = band()
    _, _, lists = hop()
    top = int(barrier.highest)
    images = barrier.images.positions
    start = jax.tree.map(lambda x: x[top], barrier.images)
    mode = images[top + 1] - images[top - 1]
    config = DimerConfig(fmax=1e-9, max_steps=2000)

    @jax.jit
    def run(params, weights):
        climb = dimer(POTENTIAL, params, start, lists, config, mode=mode)
        near = neighbors.update(lists, climb.system, POTENTIAL.shells)

        def total(params):
            saddle = at_saddle(POTENTIAL, params, climb.system, near)
            bonds = jnp.sum((saddle.system.positions[1:] - saddle.system.positions[:1]) ** 2, axis=1)
            return jnp.vdot(weights, bonds) + saddle.energy, saddle

        return jax.value_and_grad(total, has_aux=True)(params), climb

    weights = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1.5, 30))
    ((_, saddle), slope), climb = run(PARAMS, weights)
    assert bool(climb.converged) and climb.curvature < 0
    assert bool(saddle.converged) and saddle.curvatures[0] < 0 < saddle.curvatures[1]
    assert saddle.energy - barrier.energies[0] == pytest.approx(float(barrier.barrier), abs=1e-4)
    along = {"depth": 0.3, "width": -0.4, "distance": 0.5}

    def moved(t: float) -> float:
        return float(run({k: v + t * along[k] for k, v in PARAMS.items()}, weights)[0][0][0])

    h = 1e-4
    numeric = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
    exact = sum(float(slope[k]) * along[k] for k in PARAMS)
    assert exact == pytest.approx(numeric, rel=1e-6) and abs(numeric) > 0.1


def test_a_minimum_is_no_saddle():
    start, _, lists = hop()
    lists = neighbors.update(lists, start, POTENTIAL.shells)
    saddle = jax.jit(lambda s, n: at_saddle(POTENTIAL, PARAMS, s, n))(start, lists)
    assert not saddle.is_saddle and not saddle.converged and saddle.curvatures[0] > 0


def test_minimal_residuals_are_those_of_a_dense_solve():
    """Of indefinite matrices, and of singular ones for what has an answer."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(9, 9)))[0]
    spectra = np.stack([np.r_[-2.0, np.linspace(0.5, 30, 8)], np.r_[0, 0, 0, -1, np.linspace(0.5, 30, 5)], np.zeros(9)])
    matrices = (basis * spectra[:, None]) @ basis.T
    b = np.stack([basis @ rng.normal(size=9), basis @ np.r_[0, 0, 0, rng.normal(size=6)], np.zeros(9)])

    def apply(v):
        return jnp.einsum("bij,bj->bi", matrices, v.reshape(3, 9)).reshape(v.shape)

    rule = Implicit(tol=1e-10, curvature=1e-9, max_iterations=60)
    x, report = jax.jit(lambda b: implicit.minimal_residuals(apply, b, rule))(b.reshape(3, 3, 3))
    for k in range(2):
        np.testing.assert_allclose(x[k].ravel(), np.linalg.pinv(matrices[k], rcond=1e-9) @ b[k], rtol=0, atol=1e-8)
    assert report.negative.tolist() == [False, False, False] and report.residual[0] < 1e-10
    assert not np.asarray(x[2]).any()


def test_paths_are_interpolated_around_obstacles():
    """An atom that would pass through another one on a straight line goes around it; across a face the near way."""
    start = ase.Atoms("Cu3", positions=[(0.2, 0, 0), (3, 0.1, 0), (3, 4, 0)], cell=[12, 12, 12], pbc=True)
    end = start.copy()
    end.positions[0] = (6, 0, 0)
    line = interpolate(lamjax.from_ase(start), lamjax.from_ase(end), 7, "linear")
    around = interpolate(lamjax.from_ase(start), lamjax.from_ase(end), 7)
    closest = [np.linalg.norm(x.positions[:, 1] - x.positions[:, 0], axis=1).min() for x in (line, around)]
    assert closest[0] < 0.2 and closest[1] > 1.0
    end.positions[0] = (11.8, 0, 0)
    short = interpolate(lamjax.from_ase(start), lamjax.from_ase(end), 3, "linear")
    np.testing.assert_allclose(short.positions[:, 0, 0], [0.2, 0.0, -0.2], atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda atoms: atoms[1:], "have numbers of atoms that differ"),
        (lambda atoms: ase.Atoms("CuNi", atoms.positions, cell=atoms.cell, pbc=True), "elements in another order"),
        (lambda atoms: ase.Atoms("Cu2", atoms.positions, cell=2 * atoms.cell.array, pbc=True), "different cells"),
    ],
)
def test_ends_must_fit(change, message):
    start = ase.Atoms("Cu2", positions=[(0, 0, 0), (2.5, 0, 0)], cell=[6, 6, 6], pbc=True)
    with pytest.raises(ValueError, match=message):
        interpolate(lamjax.from_ase(start), lamjax.from_ase(change(start)), 5)


def test_a_band_has_inner_images():
    start = lamjax.from_ase(ase.Atoms("Cu2", positions=[(0, 0, 0), (2.5, 0, 0)], cell=[6, 6, 6], pbc=True))
    with pytest.raises(ValueError, match="at least 3 images"):
        interpolate(start, start, 2)
    with pytest.raises(ValueError, match="along a leading axis"):
        neb(POTENTIAL, PARAMS, start, lamjax.allocate(POTENTIAL, start))


def test_a_path_on_which_atoms_meet_is_refused():
    """They change places on one line: neither straight lines nor distances say on which side they pass."""
    start = ase.Atoms("Cu3", positions=[(0, 0, 0), (2.5, 0, 0), (1.25, 4, 0)])
    end = start.copy()
    end.positions[[0, 1]] = start.positions[[1, 0]]
    for method in ("linear", "idpp"):
        with pytest.raises(
            ValueError, match="Atoms 0 and 1 are 0 Å apart in image 1: on their straight ways they meet"
        ):
            interpolate(start, end, 3, method, steps=2)
    for n_images in (5.0, "5"):
        with pytest.raises(ValueError, match="at least 3 images"):
            interpolate(start, end, n_images)


def test_images_are_those_of_one_structure_and_fixed_atoms_stay():
    start = ase.Atoms("Cu3", positions=[(0, 0, 0), (2.5, 0, 0), (1.25, 4, 0)], cell=[9, 9, 9], pbc=True)
    end = start.copy()
    end.positions[2, 2] = 1
    images = interpolate(start, end, 3, "linear")
    lists = lamjax.allocate(POTENTIAL, start)
    numbers, cell = np.array(images.numbers), np.array(images.cell)
    numbers[1, 0], cell[2, 0, 0] = 28, 9.1
    for wrong, message in (
        (images._replace(numbers=numbers), "Image 1 of the band has atoms unlike"),
        (images._replace(cell=cell), "Image 2 of the band has a cell unlike"),
        ([start, end, start], "neb takes images as one System with a leading axis, got a list of Atoms"),
    ):
        with pytest.raises(ValueError, match=message):
            neb(POTENTIAL, PARAMS, wrong, lists)
    with pytest.raises(ValueError, match="Atom 2 is fixed, and 1 Å away along the band"):
        neb(POTENTIAL, PARAMS, images, lists, fixed=np.array([True, False, True]))


def test_a_dimer_needs_a_direction():
    start = ase.Atoms("Cu3", positions=[(0, 0, 0), (2.5, 0, 0), (1.25, 4, 0)], cell=[9, 9, 9], pbc=True)
    lists, fixed = lamjax.allocate(POTENTIAL, start), np.array([False, True, True])
    nothing, shift = np.zeros((3, 3)), np.ones((3, 3))
    for mode, held, message in (
        (nothing, None, "mode has the norm 0, of which 0 moves free atoms"),
        (shift, None, "mode has the norm 3, of which .* moves free atoms against one another: no direction"),
        (np.where(fixed[:, None], shift, 0), fixed, "mode has the norm 2.45, of which 0 moves free"),
        (np.full((3, 3), np.nan), None, "mode has the norm nan"),
        (np.ones(3), None, r"mode has shape \(3,\); expected \(3, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            dimer(POTENTIAL, PARAMS, start, lists, mode=mode, fixed=held)
    for search, more in ((dimer, {"mode": shift}), (neb, {})):
        with pytest.raises(TypeError, match=f"{search.__name__} takes a .*Config, got a RelaxConfig"):
            search(POTENTIAL, PARAMS, start, lists, RelaxConfig(), **more)
