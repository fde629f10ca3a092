"""The pair for jax-md: numbers of lamjax itself, and jax-md's own routines over them."""

import functools
import itertools
from typing import NamedTuple

import ase
import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import potentials
import pytest
import structures
from jax_md import minimize, quantity, simulate, space

import lamjax
from lamjax import classical, domains, dynamics, units
from lamjax.interop.jax_md import energy_neighbor_list
from lamjax.system import masses

MORSE = classical.morse(depth=0.34, width=1.36, distance=2.87, cutoff=5.5, switch_start=4.5)  # copper
PARAMS = MORSE.init(jax.random.key(0), np.float64)
predict = jax.jit(lambda system, lists: lamjax.predict(MORSE, PARAMS, system, lists))
SPACES = [("triclinic", True), ("triclinic", False), ("unwrapped", True), ("water_box", False), ("molecule", None)]


def column_box(atoms: ase.Atoms):
    """jax-md's box; None without a cell."""
    return jnp.asarray(atoms.cell.array.T) if atoms.pbc.any() else None


def coordinates(atoms: ase.Atoms, fractional: bool | None):
    return jnp.asarray(atoms.get_scaled_positions(wrap=False) if fractional else atoms.positions)


def pair(model, params, atoms: ase.Atoms, fractional, **options):
    return energy_neighbor_list(
        model, params, atoms.numbers, column_box(atoms), fractional_coordinates=fractional, **options
    )


def bond(r):
    """The energy (eV) of a pair at distance r (Å): the formula of `MORSE`."""
    depth, width, distance = (float(PARAMS[k]) for k in ("depth", "width", "distance"))
    x = jnp.exp(-width * (r - distance))
    return depth * (x * x - 2 * x) * lamjax.numerics.switch(r, 4.5, 5.5)


def copper(repeat=(1, 1, 2), a: float = 3.62) -> ase.Atoms:
    """Fewer atoms than within the cutoff: cells of 3.6 and 7.2 Å."""
    atoms = ase.build.bulk("Cu", "fcc", a=a, cubic=True) * repeat
    atoms.rattle(0.05, seed=1)
    return atoms


def compare(model, params, atoms, fractional, prediction: lamjax.Prediction, **options) -> None:
    """Energy, forces and -dE/dstrain, in one program, with those of lamjax."""
    neighbor_fn, energy_fn = pair(model, params, atoms, fractional, **options)
    position = coordinates(atoms, fractional)

    def energy(position, perturbation, neighbor):
        return energy_fn(position, neighbor, box=column_box(atoms), perturbation=perturbation)

    compute = jax.jit(jax.value_and_grad(energy, argnums=(0, 1)))
    value, (slope, deformation) = compute(position, jnp.eye(3), neighbor_fn.allocate(position))
    assert value == pytest.approx(float(prediction.energy), abs=1e-10)
    np.testing.assert_allclose(-slope, prediction.forces, atol=1e-10)
    np.testing.assert_allclose(-deformation, prediction.virial, atol=1e-9)
    assert np.abs(slope).max() > 1e-3


@pytest.mark.parametrize(("shape", "fractional"), [("unwrapped", True), ("molecule", None)])
def test_numbers_over_domains_are_those_of_predict(shape, fractional):
    """One domain, that of the one device here; tests/domains has several."""
    case, atoms = potentials.cases()["morse"], structures.ALL[shape]()
    over = domains.divide((1, 1, 1))
    compare(case.potential, case.params, atoms, fractional, potentials.evaluate(case, atoms), domains=over)
    neighbor_fn, _ = pair(case.potential, case.params, atoms, fractional, domains=over)
    listed = neighbor_fn.allocate(coordinates(atoms, fractional))
    assert not listed.update(coordinates(atoms, fractional)).did_buffer_overflow
    with pytest.raises(ValueError, match="A list over domains has no common `idx`"):
        listed.idx  # noqa: B018


NETS = [("dpa2_preset", "unwrapped", True), ("dpa2_preset", "water_box", False), ("dpa2_preset", "molecule", None)]


@pytest.mark.parametrize(("name", "shape", "fractional"), [*NETS, ("dpa3", "unwrapped", True)])
def test_numbers_of_descriptors_are_those_of_predict(name, shape, fractional):
    case, atoms = potentials.cases()[name], structures.ALL[shape]()
    compare(case.potential, case.params, atoms, fractional, potentials.evaluate(case, atoms))


class Charged(NamedTuple):
    """A pair potential that takes everything a model may take beside the atoms."""

    fparam: tuple = (0.3, -1.2)
    aparam: tuple = ((0.1, 2.0), (0.4, -0.3), (1.0, 0.2), (0.7, 0.9))
    charge_spin: tuple = (-2, 3)

    @staticmethod
    def potential():
        def atomic_energies(params, system, lists):
            far = jnp.sum(MORSE.atomic_energies(params, system, lists))
            q = system.fparam @ jnp.array([1.0, 2.0]) + system.charge_spin @ jnp.array([0.1, 0.7])
            return (q + system.aparam @ jnp.array([0.5, 0.25])) * far

        return MORSE._replace(atomic_energies=atomic_energies)


@pytest.mark.parametrize("given", [{}, {"aparam": np.ravel(Charged().aparam)}], ids=["rows", "flat"])
def test_parameters_beside_the_atoms_reach_the_model(given):
    model, atoms = Charged.potential(), copper()[:4]
    atoms.info |= {"fparam": Charged().fparam, "charge_spin": Charged().charge_spin}
    atoms.arrays["aparam"] = np.array(Charged().aparam)
    system = lamjax.from_ase(atoms)
    prediction = jax.jit(lambda s, n: lamjax.predict(model, PARAMS, s, n))(system, lamjax.allocate(model, system))
    compare(model, PARAMS, atoms, True, prediction, **(Charged()._asdict() | given))


def test_parameters_that_are_wrong_are_refused():
    for wrong, message in (
        ({"aparam": np.ones(5)}, "aparam has 5 numbers for 4 atoms"),
        ({"fparam": [np.nan]}, "fparam holds a value that is not finite"),
        ({"charge_spin": [0.5, 1]}, "charge_spin is .*two whole numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            pair(MORSE, PARAMS, copper()[:4], True, **wrong)


@pytest.mark.parametrize(("shape", "fractional"), SPACES)
def test_forces_and_stress_of_jax_md_are_those_of_predict(shape, fractional):
    atoms = structures.ALL[shape]()
    system = lamjax.from_ase(atoms)
    prediction = predict(system, lamjax.allocate(MORSE, system))
    neighbor_fn, energy_fn = pair(MORSE, PARAMS, atoms, fractional)
    box = column_box(atoms)

    @jax.jit
    def theirs(position, neighbor):
        result = energy_fn(position, neighbor), quantity.force(energy_fn)(position, neighbor=neighbor)
        kinds = (quantity.stress, quantity.pressure) if box is not None else ()
        return *result, *(kind(energy_fn, position, box, neighbor=neighbor) for kind in kinds)

    position = coordinates(atoms, fractional)
    energy, forces, *strained = theirs(position, neighbor_fn.allocate(position))
    assert energy == pytest.approx(float(prediction.energy), abs=1e-9)
    np.testing.assert_allclose(forces, prediction.forces, atol=1e-9)
    if box is not None:
        stress, pressure = strained
        np.testing.assert_allclose(stress, -units.from_voigt(lamjax.stress(prediction, system)), atol=1e-10)
        assert pressure == pytest.approx(float(jnp.trace(stress)) / 3, abs=1e-10)


@pytest.mark.parametrize("fractional", [True, False])
def test_a_perturbation_that_is_not_symmetric_acts_on_columns(fractional):
    atoms = structures.ALL["triclinic"]()
    perturbation = np.eye(3) + np.array([[0.02, 0.05, -0.03], [0.0, -0.01, 0.04], [0.01, 0.0, 0.03]])
    neighbor_fn, energy_fn = pair(MORSE, PARAMS, atoms, fractional)
    position = coordinates(atoms, fractional)
    value = energy_fn(position, neighbor_fn.allocate(position), perturbation=jnp.asarray(perturbation))
    deformed = atoms.copy()
    deformed.set_cell(atoms.cell.array @ perturbation.T, scale_atoms=True)
    system = lamjax.from_ase(deformed)
    prediction = predict(system, lamjax.allocate(MORSE, system))
    assert value == pytest.approx(float(prediction.energy), abs=1e-9)


def test_energies_of_a_large_cell_are_those_of_jax_md():
    """jax-md's own Morse pairs, which see one image of each atom only, where that is enough."""
    atoms = copper((4, 4, 4))
    box, position = column_box(atoms), coordinates(atoms, True)
    displacement, _ = space.periodic_general(box)

    @jax.jit
    @jax.value_and_grad
    def theirs(position, box):
        d = space.map_product(functools.partial(displacement, box=box))(position, position)
        return jnp.sum(bond(jnp.where(jnp.eye(len(position), dtype=bool), 100.0, space.distance(d)))) / 2

    neighbor_fn, energy_fn = pair(MORSE, PARAMS, atoms, True)
    ours = jax.jit(jax.value_and_grad(lambda position, box, neighbor: energy_fn(position, neighbor, box=box)))
    neighbor = neighbor_fn.allocate(position)
    sheared = box @ jnp.array([[1.01, 0.02, 0], [0, 1, -0.01], [0, 0, 0.99]])
    for given in (box, sheared):
        (energy, slope), (expected, other) = ours(position, given, neighbor), theirs(position, given)
        assert energy == pytest.approx(float(expected), abs=1e-9)
        np.testing.assert_allclose(slope, other, atol=1e-9)


def started(ensemble, atoms: ase.Atoms, kelvin: float):
    """Our simulation, and what jax-md's own loop begins with."""
    system = lamjax.from_ase(atoms)
    simulation = dynamics.begin(ensemble, PARAMS, system, temperature=kelvin, seed=1)
    return simulation, {"mass": masses(system), "momenta": simulation.state.momentum}


@pytest.mark.parametrize(("fractional", "wrapped"), [(True, True), (False, True), (False, False)])
def test_jax_md_s_loop_is_that_of_dynamics(fractional, wrapped):
    """Atoms cross the faces of a cell smaller than the cutoff, and the list is searched anew on the way."""
    atoms = copper()
    atoms.positions -= 0.05  # atoms at the faces
    ensemble = dynamics.nve(MORSE, dynamics.NVEConfig(timestep=2.0))
    simulation, begin = started(ensemble, atoms, 3000)
    _, seen = list(dynamics.simulate(ensemble, PARAMS, simulation, 40, 40))[-1]

    box, position = column_box(atoms), coordinates(atoms, fractional)
    _, shift = space.periodic_general(box, fractional_coordinates=fractional, wrapped=wrapped)
    neighbor_fn, energy_fn = pair(MORSE, PARAMS, atoms, fractional, dr_threshold=0.4)
    init, apply = simulate.nve(energy_fn, shift, 2.0 * units.FS)
    first = neighbor_fn.allocate(position)

    def body(_, carry):
        state, neighbor = carry
        neighbor = neighbor.update(state.position)
        return apply(state, neighbor=neighbor), neighbor

    state = init(jax.random.key(0), position, 0.0, neighbor=first, **begin)
    state, neighbor = jax.jit(lambda c: jax.lax.fori_loop(0, 40, body, c))((state, first))
    assert not neighbor.did_buffer_overflow
    assert np.abs(neighbor.reference_position - first.reference_position).max() > 0.2  # searched on the way
    end = np.asarray(space.transform(box, state.position) if fractional else state.position)
    apart = (end - seen.positions[-1]) @ np.linalg.inv(atoms.cell.array)
    crossed = np.round(apart)
    assert crossed.any() == wrapped
    np.testing.assert_allclose((apart - crossed) @ atoms.cell.array, 0, atol=1e-10)
    np.testing.assert_allclose(state.momentum, seen.momenta[-1], atol=1e-9)


def test_an_atom_that_has_crossed_a_face_keeps_its_neighbours():
    atoms = copper((2, 2, 2))
    neighbor_fn, energy_fn = pair(MORSE, PARAMS, atoms, True)
    position = coordinates(atoms, True)
    neighbor = neighbor_fn.allocate(position)
    across = position + np.array([(0, 0, 0), (1, 0, -2), (0, -1, 0), (0, 0, 5)] * 8)
    assert energy_fn(across, neighbor) == pytest.approx(float(energy_fn(position, neighbor)), abs=1e-10)
    later = neighbor.update(across)
    np.testing.assert_array_equal(later.reference_position, neighbor.reference_position)  # no new search


def test_a_forgotten_update_loses_no_neighbour():
    atoms = copper((2, 2, 2))
    neighbor_fn, energy_fn = pair(MORSE, PARAMS, atoms, False, dr_threshold=0.2)
    position = coordinates(atoms, False)
    old = neighbor_fn.allocate(position)
    moved = position + np.random.default_rng(0).normal(scale=0.3, size=position.shape)
    assert energy_fn(moved, old) == pytest.approx(float(energy_fn(moved, neighbor_fn.allocate(moved))), abs=1e-10)


def test_a_full_list_says_so_before_it_is_wrong_and_after():
    atoms = copper((2, 2, 2), a=4.4)
    neighbor_fn, energy_fn = pair(MORSE, PARAMS, atoms, True)
    position = coordinates(atoms, True)
    neighbor = neighbor_fn.allocate(position)
    images = jnp.array(list(itertools.product(range(-2, 3), repeat=3)))  # more than the smallest cell needs

    @jax.jit
    def right(box):
        r = jnp.linalg.norm((position[:, None, None] - position[:, None] + images) @ box.T, axis=-1)
        return jnp.sum(bond(jnp.where(r > 0, r, 100.0))) / 2

    @jax.jit
    def found(neighbor, box):
        force = quantity.force(energy_fn)(position, neighbor=neighbor, box=box)
        return energy_fn(position, neighbor, box=box), force

    exact, flagged = [], []
    for scale in np.linspace(1, 0.75, 26):
        box = scale * column_box(atoms)
        here = neighbor.update(position, box=box)
        energy, force = found(here, box)
        exact.append(bool(np.isclose(energy, right(box), atol=1e-9)))
        flagged.append(bool(here.did_buffer_overflow))
        if not exact[-1]:  # never a wrong number
            assert np.isnan(energy) and np.isnan(force).all()
    first = flagged.index(True)
    assert 0 < first < 25 and all(exact[: first + 1]) and not exact[-1]
    assert here.update(position, box=column_box(atoms)).did_buffer_overflow  # until it is allocated anew
    wide = neighbor_fn.allocate(position, extra_capacity=200)
    assert not wide.update(position, box=0.9 * column_box(atoms)).did_buffer_overflow


def test_constant_pressure_squeezes_the_crystal():
    """Shrunk until the list is full, allocated anew, and the last steps not lost: the loop of jax-md's manual."""
    atoms = copper((2, 2, 2), a=3.9)
    box, position = column_box(atoms), coordinates(atoms, False)
    _, shift = space.periodic_general(box, fractional_coordinates=False)
    neighbor_fn, energy_fn = pair(MORSE, PARAMS, atoms, False, capacity_multiplier=1.0, dr_threshold=0.5)
    kwargs = {"tau": 100 * units.FS}
    init, apply = simulate.npt_nose_hoover(
        energy_fn, shift, 2 * units.FS, 20 * units.GPA, 300 * units.KB, kwargs, {"tau": 50 * units.FS}
    )
    neighbor = neighbor_fn.allocate(position)
    mass = masses(lamjax.from_ase(atoms))
    state = init(jax.random.key(0), position, box, neighbor=neighbor, mass=mass)

    def body(_, carry):
        state, neighbor = carry
        neighbor = neighbor.update(state.position, box=simulate.npt_box(state))
        return apply(state, neighbor=neighbor), neighbor

    chunk = jax.jit(lambda state, neighbor: jax.lax.fori_loop(0, 10, body, (state, neighbor)))
    overflows, made = 0, 0
    while made < 15 and overflows < 4:
        new, neighbor = chunk(state, neighbor)
        if neighbor.did_buffer_overflow:
            overflows += 1
            neighbor = neighbor_fn.allocate(state.position, box=simulate.npt_box(state), extra_capacity=16 * overflows)
        else:
            state, made = new, made + 1
    volume = quantity.volume(3, simulate.npt_box(state))
    assert 0 < overflows < 4 and np.isfinite(state.position).all()
    assert volume < 0.85 * atoms.get_volume()


@pytest.mark.parametrize("make", ["nvt_langevin", "nvt_nose_hoover"])
def test_thermostats_of_jax_md_run(make):
    atoms = copper()
    box, position = column_box(atoms), coordinates(atoms, True)
    _, shift = space.periodic_general(box)
    neighbor_fn, energy_fn = pair(MORSE, PARAMS, atoms, True)
    neighbor = neighbor_fn.allocate(position)
    init, apply = getattr(simulate, make)(energy_fn, shift, 2 * units.FS, 300 * units.KB)
    state = init(jax.random.key(0), position, neighbor=neighbor, mass=masses(lamjax.from_ase(atoms)))
    for _ in range(5):
        state = apply(state, neighbor=neighbor)
    assert np.isfinite(state.position).all() and np.abs(state.position - position).max() > 1e-4


def test_fire_of_jax_md_relaxes_a_cluster():
    atoms = ase.Atoms("Cu4", [(0, 0, 0), (2.5, 0, 0), (0, 2.7, 0.1), (0.3, 0.2, 2.6)])
    neighbor_fn, energy_fn = pair(MORSE, PARAMS, atoms, None)
    _, shift = space.free()
    position = coordinates(atoms, None)
    neighbor = neighbor_fn.allocate(position)
    init, apply = minimize.fire_descent(energy_fn, shift)
    state = jax.jit(
        lambda s: jax.lax.fori_loop(0, 400, lambda _, s: apply(s, neighbor=neighbor.update(s.position)), s)
    )(init(position, neighbor=neighbor))
    assert energy_fn(state.position, neighbor) == pytest.approx(-6 * 0.34, abs=1e-8)  # a tetrahedron: six bonds


def test_single_precision_stays_single(dtype):
    atoms = copper()
    neighbor_fn, energy_fn = energy_neighbor_list(
        MORSE, MORSE.init(None, dtype), atoms.numbers, column_box(atoms).astype(dtype), fractional_coordinates=True
    )
    position = coordinates(atoms, True).astype(dtype)
    neighbor = neighbor_fn.allocate(position)
    assert energy_fn(position, neighbor).dtype == jax.grad(energy_fn)(position, neighbor).dtype == dtype
    assert not neighbor.update(position).did_buffer_overflow
    assert neighbor.idx.shape[0] == len(atoms) and neighbor.idx.max() == len(atoms)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a, r: energy_neighbor_list(MORSE, PARAMS, a.numbers, 10.0), "Say fractional_coordinates"),
        (lambda a, r: energy_neighbor_list(MORSE, PARAMS, [29, 0]), "Atom 1 has atomic number 0"),
        (lambda a, r: pair(MORSE, PARAMS, a, True)[0].allocate(r[:3]), "shape"),
        (lambda a, r: pair(MORSE, PARAMS, a, True)[0].allocate(jnp.nan * r), "not finite"),
        (lambda a, r: pair(MORSE, PARAMS, a, True)[0].allocate(0 * r), "two atoms on one place"),
        (lambda a, r: pair(MORSE, PARAMS, a, True)[0].allocate(r, box=-column_box(a)), "left-handed"),
        (
            lambda a, r: energy_neighbor_list(MORSE._replace(elements=("H",)), PARAMS, a.numbers)[0].allocate(r),
            "Element Cu",
        ),
    ],
)
def test_mistakes_are_named(make, message):
    atoms = copper()
    with pytest.raises(ValueError, match=message):
        make(atoms, coordinates(atoms, True))
