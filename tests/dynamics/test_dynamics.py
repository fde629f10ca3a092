"""Simulations against ASE, statistical mechanics and conservation laws; and what they do when something goes wrong."""

import ase
import ase.build
import ase.md.velocitydistribution
import ase.md.verlet
import jax
import numpy as np
import pytest

import lamjax
from lamjax import classical, dynamics, units
from lamjax.dynamics import NPTConfig, NVEConfig, NVTConfig
from lamjax.dynamics.ensembles import degrees_of_freedom, thermal_momenta
from lamjax.system import pad

MORSE = classical.morse(depth=0.34, width=1.36, distance=2.87, cutoff=5.5, switch_start=4.5)  # copper
PARAMS = MORSE.init(jax.random.key(0), np.float64)
NO_NUMBERS = jax.tree.map(lambda x: np.nan * x, PARAMS)


@pytest.fixture(autouse=True)
def room(monkeypatch):
    """Arrays that need not grow: each time they do, programs are compiled. How they grow has a test of its own."""
    monkeypatch.setattr(dynamics.run, "HEADROOM", 1.5)


def copper(repeat=(2, 2, 2), a: float = 3.62, seed: int = 0) -> ase.Atoms:
    atoms = ase.build.bulk("Cu", "fcc", a=a, cubic=True) * repeat
    atoms.rattle(0.03, seed=seed)
    return atoms


def records(ensemble, simulation, n_steps: int, every: int = 10, params=PARAMS):
    """All records of a run in one, and where it ends."""
    ends, parts = zip(*dynamics.simulate(ensemble, params, simulation, n_steps, every), strict=True)
    return ends[-1], dynamics.Record(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def test_velocity_verlet_is_that_of_ase():
    atoms = copper()
    atoms.pbc[0] = False  # a slab, whose atoms leave the cell
    timestep = float(np.float32(2.0 * units.FS))  # what jax-md makes of 2 fs
    ensemble = dynamics.nve(MORSE, NVEConfig(timestep=2.0))
    simulation = dynamics.begin(ensemble, PARAMS, lamjax.from_ase(atoms), temperature=900, seed=1)
    atoms.set_momenta(np.asarray(simulation.state.momentum))
    _, seen = records(ensemble, simulation, 100, every=50)
    atoms.calc = lamjax.Calculator((MORSE, PARAMS))
    ase.md.verlet.VelocityVerlet(atoms, timestep=timestep).run(100)
    np.testing.assert_allclose(seen.positions[-1], atoms.positions, atol=1e-8)
    np.testing.assert_allclose(seen.momenta[-1], atoms.get_momenta(), atol=1e-8)
    np.testing.assert_allclose(seen.forces[-1], atoms.get_forces(), atol=1e-8)
    assert seen.potential_energy[-1] == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    assert seen.kinetic_energy[-1] == pytest.approx(atoms.get_kinetic_energy(), abs=1e-9)
    assert list(seen.step) == [50, 100]


def test_stress_and_pressure_are_those_of_ase():
    atoms = copper(a=3.5)
    ensemble = dynamics.nve(MORSE)
    simulation = dynamics.begin(ensemble, PARAMS, lamjax.from_ase(atoms), temperature=600)
    _, seen = records(ensemble, simulation, 3, every=3)
    atoms.positions, calculator = seen.positions[-1], lamjax.Calculator((MORSE, PARAMS))
    atoms.set_momenta(seen.momenta[-1])
    atoms.calc = calculator
    np.testing.assert_allclose(seen.stress[-1], atoms.get_stress(include_ideal_gas=True), atol=1e-9)
    assert seen.pressure[0] > 0  # compressed
    assert seen.pressure[0] == pytest.approx(-atoms.get_stress(include_ideal_gas=True)[:3].mean())


def test_energy_and_momentum_are_conserved():
    """1e-5 eV/atom/ps, through many searches of the lists."""
    ensemble = dynamics.nve(MORSE, NVEConfig(timestep=2.0))
    simulation = dynamics.begin(ensemble, PARAMS, lamjax.from_ase(copper()), temperature=1200, skin=0.3)
    n_atoms, n_steps = 32, 2000
    _, seen = records(ensemble, simulation, n_steps, every=10)
    picoseconds = seen.step * 2e-3
    slope = np.polyfit(picoseconds, seen.conserved / n_atoms, 1)[0]
    assert abs(slope) < 1e-5
    np.testing.assert_allclose(seen.momenta.sum(axis=1), 0, atol=1e-10)
    assert seen.conserved == pytest.approx(seen.potential_energy + seen.kinetic_energy)


@pytest.mark.parametrize("thermostat", ["langevin", "nose_hoover"])
def test_temperature_and_its_fluctuation_are_canonical(thermostat):
    config = NVTConfig(1.0 if thermostat == "nose_hoover" else 2.0, 500.0, thermostat, 0.01, thermostat_time=60.0)
    ensemble = dynamics.nvt(MORSE, config)
    simulation = dynamics.begin(ensemble, PARAMS, lamjax.from_ase(copper()), temperature=500, seed=2)
    simulation, _ = records(ensemble, simulation, 500, every=50)
    _, seen = records(ensemble, simulation, 5000, every=10)
    freedom = 3 * 32 - (0 if thermostat == "langevin" else 3)
    assert np.mean(seen.temperature) == pytest.approx(500, rel=0.02)
    assert np.var(seen.temperature) == pytest.approx(2 * 500**2 / freedom, rel=0.25)
    if thermostat == "nose_hoover":
        assert np.ptp(seen.conserved) / 32 < 1e-4
        np.testing.assert_allclose(seen.momenta.sum(axis=1), 0, atol=1e-8)
    else:
        assert np.isnan(seen.conserved).all()


def test_a_crystal_at_constant_pressure_has_the_volume_of_its_equation_of_state():
    """At 20 K hardly more is left than the static equation of state."""
    pressure = 10 * units.GPA
    config = NPTConfig(2.0, 20.0, pressure, thermostat_time=100.0, barostat_time=1000.0)
    ensemble = dynamics.npt(MORSE, config)
    system = lamjax.from_ase(ase.build.bulk("Cu", "fcc", a=3.62, cubic=True) * (2, 2, 2))
    simulation = dynamics.begin(ensemble, PARAMS, system)
    simulation, _ = records(ensemble, simulation, 700, every=100)
    _, seen = records(ensemble, simulation, 800, every=5)
    relaxed = lamjax.relax(
        MORSE,
        PARAMS,
        system,
        lamjax.allocate(MORSE, system),
        lamjax.relaxation.RelaxConfig(fmax=1e-4, max_steps=500, cell=lamjax.relaxation.CellConfig(pressure)),
    )
    expected = abs(np.linalg.det(np.asarray(relaxed.system.cell)))
    assert np.mean(seen.volume) == pytest.approx(expected, rel=0.005)
    assert np.mean(seen.pressure) == pytest.approx(pressure, abs=0.2 * units.GPA)
    assert np.ptp(seen.conserved) / 32 < 1e-4


def test_a_run_that_goes_on_is_the_run_that_was_not_stopped():
    ensemble = dynamics.nvt(MORSE, NVTConfig(2.0, 400.0))
    simulation = dynamics.begin(ensemble, PARAMS, lamjax.from_ase(copper()), seed=4)
    _, whole = records(ensemble, simulation, 60)
    middle, first = records(ensemble, simulation, 30)
    _, second = records(ensemble, middle, 30)
    np.testing.assert_array_equal(np.concatenate([first.positions, second.positions]), whole.positions)
    np.testing.assert_array_equal(np.concatenate([first.step, second.step]), whole.step)
    assert list(whole.step) == [10, 20, 30, 40, 50, 60]


def test_chunks_of_any_length_are_the_same_simulation():
    """What is seen are multiples of `every` and the last step, wherever a run begins; nothing is compiled twice."""
    ensemble = dynamics.nvt(MORSE, NVTConfig(2.0, 400.0))
    simulation = dynamics.begin(ensemble, PARAMS, lamjax.from_ase(copper()), seed=4)
    _, whole = records(ensemble, simulation, 60)
    now, seen = dynamics.observe(ensemble, PARAMS, simulation), ()
    assert list(now.step) == [0] and now.temperature[0] == pytest.approx(400)
    for n_steps in (7, 13, 40):
        ends, parts = zip(*dynamics.simulate(ensemble, PARAMS, simulation, n_steps, 10, seconds=0.0), strict=True)
        simulation, seen = ends[-1], (*seen, *parts)
    assert [int(n) for part in seen for n in part.step] == [7, 10, 20, 30, 40, 50, 60]
    np.testing.assert_array_equal(np.concatenate([part.positions for part in seen[1:]]), whole.positions)
    at_the_end = dynamics.observe(ensemble, PARAMS, simulation)
    for one, other in zip(at_the_end, seen[-1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_other_baths_and_like_structures_need_no_other_program():
    """Counted by the traces of the potential; the temperature is the one that was asked for all the same."""
    traced = []

    def atomic_energies(params, system, around):
        traced.append(system.numbers.shape)
        return MORSE.atomic_energies(params, system, around)

    potential, room = MORSE._replace(atomic_energies=atomic_energies), None
    counts, warmth = [], []
    for kelvin, pressure, seed in ((20, 0, 0), (900, 20, 1)):
        atoms = copper(a=3.62 - 0.02 * seed, seed=seed)
        ensemble = dynamics.npt(potential, NPTConfig(2.0, kelvin, pressure * units.GPA, 20.0, 200.0))
        simulation = dynamics.begin(ensemble, PARAMS, lamjax.from_ase(atoms), temperature=300, room=room)
        simulation, seen = records(ensemble, simulation, 200, every=20)
        room = room or simulation.shapes
        assert simulation.shapes == room
        counts.append(len(traced))
        warmth.append(np.mean(seen.temperature[5:]))
    assert 0 < counts[0] == counts[1]
    assert warmth[0] < 150 < 600 < warmth[1]


def test_degrees_of_freedom_are_those_that_momentum_leaves():
    chain, langevin = NVTConfig(thermostat="nose_hoover"), NVTConfig()
    assert [degrees_of_freedom(c, 32) for c in (NVEConfig(), NPTConfig(), chain, langevin)] == [93, 93, 93, 96]
    assert [degrees_of_freedom(c, 1) for c in (NVEConfig(), langevin)] == [3, 3]
    assert [degrees_of_freedom(c, 32, 6) for c in (NVEConfig(), langevin)] == [90, 90]
    assert int(jax.jit(lambda n: degrees_of_freedom(chain, 32, n))(0)) == 93
    # 32 atoms in a plane: they drift in it; one atom held along x: along y and z
    along = [np.array([0, 0, 32]), np.array([1, 0, 0])]
    assert [int(degrees_of_freedom(NVEConfig(), 32, n)) for n in along] == [62, 93]
    assert [int(degrees_of_freedom(langevin, 32, n)) for n in along] == [64, 95]


@pytest.mark.parametrize("held", [0, 1, 5])
def test_momenta_that_are_drawn_have_the_temperature_that_is_asked_for(held):
    system, fixed = lamjax.from_ase(copper()), np.zeros((32, 3), bool)
    fixed[:held] = True
    p = thermal_momenta(NVEConfig(), system, fixed, 300, seed=3)
    free = 3 * (32 - held) - (0 if held else 3)
    kinetic = np.sum(p**2 / (2 * copper().get_masses()[:, None]))
    assert kinetic == pytest.approx(free / 2 * units.KB * 300, rel=1e-12)
    assert not p[fixed].any() and (held or np.abs(p.sum(axis=0)).max() < 1e-12)


def drifting(atoms: ase.Atoms, kelvin: float, speed) -> np.ndarray:
    """Momenta of a temperature, of a centre of mass that moves."""
    momenta = (
        np.random.default_rng(1).normal(size=(len(atoms), 3)) * np.sqrt(kelvin * units.KB * atoms.get_masses())[:, None]
    )
    momenta -= atoms.get_masses()[:, None] * momenta.sum(axis=0) / atoms.get_masses().sum()
    return momenta + atoms.get_masses()[:, None] * np.asarray(speed)


@pytest.mark.parametrize("make", [dynamics.nve, dynamics.nvt])
def test_a_drift_of_the_whole_is_no_heat(make):
    """What ASE counts of the atoms alone, whatever the velocity of the centre of mass."""
    atoms = copper()
    atoms.symbols[::3] = "Ni"
    momenta = drifting(atoms, 300, (0.1, -0.2, 0.05))
    with pytest.warns(
        UserWarning, match=r"centre of mass moved with 0.0225 Å/fs, 9\d% of the kinetic energy. It is taken"
    ):
        simulation = dynamics.begin(make(MORSE), PARAMS, lamjax.from_ase(atoms), momenta=momenta)
    seen = dynamics.observe(make(MORSE), PARAMS, simulation)
    alone = atoms.copy()
    alone.set_momenta(momenta)
    ase.md.velocitydistribution.Stationary(alone, preserve_temperature=False)
    np.testing.assert_allclose(seen.momenta[0], alone.get_momenta(), atol=1e-12)
    n = 96 if make is dynamics.nvt else 93
    assert seen.temperature[0] == pytest.approx(2 * alone.get_kinetic_energy() / (n * units.KB), rel=1e-9)


def test_momenta_without_a_drift_are_taken_to_the_last_bit():
    atoms = copper()
    momenta = np.round(drifting(atoms, 300, (0, 0, 0)), 8)  # as a file has them
    simulation = dynamics.begin(dynamics.nve(MORSE), PARAMS, lamjax.from_ase(atoms), momenta=momenta)
    np.testing.assert_array_equal(simulation.state.momentum, momenta)


def test_what_is_fixed_holds_its_axes():
    """One atom is held along x: there is no drift along x, but along y and z. So it is with drawn momenta."""
    atoms, fixed = copper(), np.zeros((32, 3), bool)
    fixed[5, 0] = True
    momenta = drifting(atoms, 300, (0.1, 0.1, 0.1))
    with pytest.warns(UserWarning, match="drift"):
        simulation = dynamics.begin(dynamics.nve(MORSE), PARAMS, lamjax.from_ase(atoms), momenta=momenta, fixed=fixed)
    began = np.asarray(simulation.state.momentum)
    expected = np.where(fixed, 0, momenta)
    np.testing.assert_array_equal(began[:, 0], expected[:, 0])
    np.testing.assert_allclose(began[:, 1:], expected[:, 1:] - expected[:, 1:].mean(axis=0), atol=1e-12)
    drawn = dynamics.begin(dynamics.nve(MORSE), PARAMS, lamjax.from_ase(atoms), temperature=300, fixed=fixed)
    np.testing.assert_allclose(np.asarray(drawn.state.momentum).sum(axis=0)[1:], 0, atol=1e-12)
    assert abs(np.asarray(drawn.state.momentum).sum(axis=0)[0]) > 0.1
    seen = dynamics.observe(dynamics.nve(MORSE), PARAMS, drawn)
    assert seen.temperature[0] == pytest.approx(300, rel=1e-9)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"momenta": np.ones(3)}, r"momenta have shape \(3,\); expected \(32, 3\)"),
        ({"momenta": np.ones((32, 1))}, r"shape \(32, 1\)"),
        ({"momenta": 0.0}, r"shape \(\)"),
        (
            {"momenta": np.where(np.arange(96).reshape(32, 3) == 40, np.nan, 1)},
            "momentum of atom 13 is .*nan.*not finite",
        ),
        ({"momenta": np.full((32, 3), np.inf)}, "momentum of atom 0"),
        ({"temperature": -10.0}, "temperature is -10.0 K"),
        ({"temperature": np.nan}, "temperature is nan K"),
    ],
)
def test_momenta_that_cannot_be_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        dynamics.begin(dynamics.nve(MORSE), PARAMS, lamjax.from_ase(copper()), **given)


def test_a_neighbour_on_the_cutoff_itself_fits():
    """Its images lie one lattice constant away: the host's rounding leaves them out, the device's does not."""
    potential = classical.morse(depth=0.34, width=1.36, distance=2.87, cutoff=3.6, switch_start=3.0)
    atoms = ase.build.bulk("Cu", "fcc", a=3.6, cubic=True)
    atoms.rattle(0.03, seed=0)
    simulation = dynamics.begin(dynamics.nve(potential), potential.init(), lamjax.from_ase(atoms), temperature=600)
    assert simulation.shapes.capacities[0] >= 18


@pytest.mark.parametrize("make", [dynamics.nve, dynamics.npt])
def test_lists_that_become_too_narrow_grow_and_nothing_is_lost(make, monkeypatch):
    """A hot crystal in arrays without any room: the same trajectory as with room from the beginning."""
    ensemble, system = (
        make(MORSE, NVEConfig(2.0) if make is dynamics.nve else NPTConfig(2.0)),
        lamjax.from_ase(copper()),
    )
    wide = dynamics.begin(ensemble, PARAMS, system, temperature=4000, seed=3)
    monkeypatch.setattr(dynamics.run, "HEADROOM", 1.0)
    tight = dynamics.begin(ensemble, PARAMS, system, temperature=4000, seed=3)
    monkeypatch.undo()
    end, seen = records(ensemble, tight, 60)
    _, expected = records(ensemble, wide, 60)
    assert end.shapes.capacities > tight.shapes.capacities and end.n_grown > 0 == tight.n_grown
    np.testing.assert_allclose(seen.positions, expected.positions, atol=1e-8)
    np.testing.assert_array_equal(seen.step, expected.step)


def test_fixed_atoms_stay_and_do_not_count():
    atoms = copper()
    fixed = np.zeros((32, 3), bool)
    fixed[:16] = True
    fixed[16, 0] = True
    ensemble = dynamics.nvt(MORSE, NVTConfig(2.0, 400.0, friction=0.02))
    simulation = dynamics.begin(ensemble, PARAMS, lamjax.from_ase(atoms), fixed=fixed)
    simulation, _ = records(ensemble, simulation, 500)
    _, seen = records(ensemble, simulation, 4000)
    np.testing.assert_array_equal(seen.positions[-1][fixed], atoms.positions[fixed])
    assert np.abs(seen.positions[-1] - atoms.positions)[~fixed].max() > 0.01
    assert np.mean(seen.temperature) == pytest.approx(400, rel=0.05)


def test_an_explosion_stops_with_the_last_good_state():
    atoms = copper()
    ensemble = dynamics.nve(MORSE, NVEConfig(timestep=60.0))
    simulation = dynamics.begin(ensemble, PARAMS, lamjax.from_ase(atoms), temperature=3000)
    with pytest.raises(
        dynamics.DynamicsError, match=r"atom \d+ \(Cu\) moves .* Shorten the time step \(now 60 fs\)"
    ) as caught:
        records(ensemble, simulation, 500)
    last = caught.value.simulation
    assert np.isfinite(np.asarray(last.state.position)).all() and last.step < 500


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: dynamics.begin(dynamics.nve(MORSE), PARAMS, s), "temperature"),
        (lambda s: dynamics.begin(dynamics.npt(MORSE), PARAMS, s._replace(pbc=np.zeros(3, bool))), "periodic"),
        (
            lambda s: dynamics.begin(
                dynamics.nvt(MORSE, NVTConfig(thermostat="nose_hoover")), PARAMS, s, fixed=np.ones((32, 3), bool)
            ),
            "langevin",
        ),
        (lambda s: dynamics.begin(dynamics.nvt(MORSE), PARAMS, s, fixed=np.ones((4, 3), bool)), "shape"),
        (lambda s: dynamics.begin(dynamics.npt(MORSE), PARAMS, s._replace(cell=s.cell[::-1])), "right-handed"),
        (lambda s: dynamics.begin(dynamics.nvt(MORSE), PARAMS, pad(s, 40)), "8 of 40 atoms are padding"),
        (
            lambda s: dynamics.begin(dynamics.nvt(MORSE), NO_NUMBERS, s),
            "Energy or forces of the start are infinite or NaN",
        ),
        (lambda s: NVTConfig(timestep=0), "timestep"),
        (lambda s: NVTConfig(thermostat="berendsen"), "berendsen"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(lamjax.from_ase(copper()))


def test_molecules_and_one_atom_move_too():
    ensemble = dynamics.nve(MORSE)
    pair = ase.Atoms("Cu2", [(0, 0, 0), (2.6, 0, 0)])
    simulation = dynamics.begin(ensemble, PARAMS, lamjax.from_ase(pair), momenta=np.zeros((2, 3)))
    _, seen = records(ensemble, simulation, 100)
    assert np.ptp(seen.conserved) < 1e-5 and np.ptp(seen.positions[:, 1, 0]) > 0.01
    assert np.isnan(seen.volume).all()
    simulation = dynamics.begin(ensemble, PARAMS, lamjax.from_ase(ase.Atoms("Cu")), momenta=np.ones((1, 3)))
    _, seen = records(ensemble, simulation, 10)
    np.testing.assert_allclose(seen.momenta[-1], 1)


@pytest.mark.parametrize("make", [dynamics.nve, dynamics.nvt, dynamics.npt])
def test_single_precision_stays_single_and_is_near(make):
    params = jax.tree.map(lambda x: x.astype(np.float32), PARAMS)
    ends = []
    for dtype, mine in ((np.float32, params), (np.float64, PARAMS)):
        system = lamjax.from_ase(copper(), dtype)
        momenta = np.random.default_rng(0).normal(size=(32, 3), scale=1.5)
        momenta = (momenta - momenta.mean(axis=0)).astype(np.float32)
        simulation = dynamics.begin(make(MORSE), mine, system, momenta=momenta)
        assert simulation.state.position.dtype == dtype
        simulation, seen = records(make(MORSE), simulation, 20, params=mine)
        assert simulation.state.position.dtype == simulation.state.force.dtype == dtype
        ends.append(seen)
    if make is not dynamics.nvt:  # random numbers of two precisions are others
        np.testing.assert_allclose(ends[0].positions, ends[1].positions, atol=2e-4)
