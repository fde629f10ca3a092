"""Structures in flight end where they end alone, whatever happens to the others."""

import dataclasses

import ase
import ase.build
import bound_models as models
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lamjax
from lamjax import classical, neighbors, pytree
from lamjax.neighbors import verlet
from lamjax.relaxation import CellConfig, FireConfig, LBFGSConfig, RelaxConfig, buckets, lists, relax, slots, stream
from lamjax.relaxation.buckets import Shape
from lamjax.system import host_system, pad

TIGHT = RelaxConfig(fmax=2e-5, max_steps=3000)


def rattled(atoms: ase.Atoms, seed: int, size: float = 0.1) -> ase.Atoms:
    atoms.rattle(size, seed=seed)
    return atoms


def mixture() -> list[ase.Atoms]:
    """Crystals of one to eight atoms, one of them thin, a slab and clusters."""
    cubic = ase.build.bulk("Cu", "fcc", a=3.5, cubic=True)
    cluster = (ase.build.bulk("Cu", "fcc", a=3.6, cubic=True) * (2, 2, 2))[:7]
    cluster.pbc, cluster.cell = False, np.zeros((3, 3))
    skewed = ase.Atoms("Cu2", [(0, 0, 0), (1.8, 1.9, 0.3)], cell=[[3.4, 0, 0], [1.5, 3.3, 0], [-1.2, 1, 3.5]], pbc=True)
    slab = ase.build.fcc111("Cu", (1, 2, 2), a=3.5, vacuum=6.0)
    strained = ase.build.bulk("Cu", "fcc", a=3.5)
    strained.set_cell(strained.cell.array @ np.diag([1.03, 0.98, 1.0]), scale_atoms=True)
    sizes = [rattled(cubic * (2, 1, 1), 0), strained, rattled(cluster, 1), rattled(skewed, 2), rattled(slab, 3)]
    return sizes + [rattled(cubic.copy(), seed) for seed in range(4, 9)]


def alone(potential, params, systems, config: RelaxConfig, fixed):
    """Each structure by `relax`, one after another, in arrays that hold any of them: one program."""
    n_atoms, shells = max(s.n_atoms for s in systems), potential.shells
    offsets = [neighbors.image_offsets(s.cell, s.pbc, 2.5 * potential.cutoff) for s in systems]
    offsets = np.unique(np.concatenate(offsets), axis=0)
    run = jax.jit(lambda params, s, n, f: relax(potential, params, s, n, config, fixed=f))
    for system, still in zip(systems, fixed, strict=True):
        around = neighbors.host_neighbors(pad(system, n_atoms), shells, tuple(shell.sel or 256 for shell in shells))
        held = np.zeros((n_atoms, 3), bool)
        held[: system.n_atoms] = False if still is None else still
        yield jax.tree.map(np.asarray, run(params, pad(system, n_atoms), around._replace(offsets=offsets), held))


CELLS = {"fixed": None, "variable": CellConfig(pressure=0.01)}
QUICK = ("morse", "dpa2")  # of the others test_relax relaxes several, and tests/cli/test_descriptors their cells


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "kind", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in models.DESCRIPTORS if n not in QUICK)]
)
def test_minima_are_those_of_one_at_a_time(kind, cell):
    potential = models.morse() if kind == "morse" else models.bound(kind, ("Si", "B", "Cu"))
    params = models.params_of(potential)
    config = dataclasses.replace(TIGHT, cell=CELLS[cell])
    systems = [host_system(a) for a in (mixture() if kind == "morse" else mixture()[1:6])]
    fixed = [None] * len(systems)
    fixed[2] = np.arange(3 * systems[2].n_atoms).reshape(-1, 3) < 5
    outcomes = list(stream(potential, params, systems, config, fixed=fixed, slots=4, max_programs=2, chunk=7))
    assert sorted(o.number for o in outcomes) == list(range(len(systems)))
    references = list(alone(potential, params, systems, config, fixed))
    for outcome in outcomes:
        k, result = outcome.number, outcome.relaxation
        expected = references[k]
        assert outcome.error is None and result.converged and expected.converged, k
        assert result.energy == pytest.approx(float(expected.energy), abs=1e-6)
        assert result.n_steps == expected.n_steps and not expected.overflow
        assert result.system.positions.shape == systems[k].positions.shape == result.forces.shape
        if fixed[k] is not None and CELLS[cell] is None:
            np.testing.assert_array_equal(result.system.positions[fixed[k]], systems[k].positions[fixed[k]])


class Lazy:
    """Structures that are read from somewhere, when they are asked for."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, k):
        if isinstance(self.items[k], Exception):
            raise self.items[k]
        return self.items[k]


def cliff(params, r):
    """Falls ever faster from 1.7 Å inwards: the forces become infinite on the way."""
    return -1.0 / jnp.maximum(r - 1.0, 0) ** 2 * (r < 1.7) + params["depth"] * (r - 2.5) ** 2


def test_bad_structures_fail_alone():
    potential = classical.pair_potential(cliff, {"depth": 1.0}, 4.0)
    potential = potential._replace(elements=("Cu",))
    params = models.params_of(potential)
    good = host_system(ase.Atoms("Cu3", [(0, 0, 0), (2.3, 0, 0), (1.1, 2.2, 0)]))
    lattice = np.eye(3) * 4.0
    bad = {
        1: (good._replace(positions=good.positions * np.nan), "not finite"),
        2: (good._replace(numbers=np.array([29, 14, 29], np.int32)), "Si is not in the model's type map"),
        3: (good._replace(positions=good.positions[[0, 0, 1]]), "two atoms on one place"),
        4: (good._replace(cell=lattice * 0.01, pbc=np.ones(3, bool)), "images of the cell"),
        5: (OSError("disk on fire"), "disk on fire"),
        6: (good._replace(positions=good.positions * 0.65), "infinite or NaN"),
        7: (good._replace(cell=lattice * 0, pbc=np.ones(3, bool)), "lattice vector"),
    }
    systems = Lazy([good, *(system for system, _ in bad.values()), good])
    outcomes = {o.number: o for o in stream(potential, params, systems, RelaxConfig(fmax=0.01, max_steps=200))}
    assert len(outcomes) == 9
    for number, (_, message) in bad.items():
        assert message in outcomes[number].error
        assert outcomes[number].relaxation is None or not outcomes[number].relaxation.converged
    assert not outcomes[6].relaxation.finite and np.isfinite(outcomes[6].relaxation.system.positions).all()
    for number in (0, 8):
        assert outcomes[number].error is None and outcomes[number].relaxation.converged


@pytest.mark.parametrize("method", [FireConfig(), LBFGSConfig(curvature=10.0)], ids=lambda m: m.type)
def test_what_outgrows_its_arrays_goes_on_from_where_it_is(method):
    """A loose sheet that contracts among other structures."""
    potential = classical.morse(depth=2.0, width=0.8, distance=1.5, cutoff=4.0, switch_start=3.0)
    params = models.params_of(potential)
    places = [(2.9 * k, 2.9 * j + 0.3 * (k % 2), 0.4 * ((j + k) % 3)) for j in range(4) for k in range(4)]
    sheet = host_system(ase.Atoms("Cu16", places))
    dimers = [host_system(ase.Atoms("Cu2", [(0, 0, 0), (1.3 + 0.1 * k, 0, 0)])) for k in range(3)]
    config = RelaxConfig(fmax=1e-3, max_steps=2000, minimiser=method)
    outcomes = list(stream(potential, params, [sheet, *dimers], config, max_programs=1))
    assert all((o.n_widened > 0) == (o.number == 0) for o in outcomes)
    relaxed = {o.number: o.relaxation for o in outcomes}
    (expected,) = alone(potential, params, [sheet], config, [None])
    assert all(r.converged and not r.overflow for r in relaxed.values())
    assert relaxed[0].energy == pytest.approx(float(expected.energy), abs=1e-9)
    assert relaxed[0].largest_counts[0] > buckets.shape(potential, sheet, config).capacities[0]
    assert relaxed[0].n_steps == expected.n_steps
    short = dataclasses.replace(config, max_steps=int(relaxed[0].n_steps) - 5)
    (cut,) = stream(potential, params, [sheet], short)
    assert not cut.relaxation.converged and cut.relaxation.n_steps == short.max_steps


def test_programs_are_compiled_once_a_shape(monkeypatch):
    """Structures come and go for many chunks; the potential is traced and compiled as often as there are shapes."""
    traced, compiled = [], []
    plain = classical.morse(depth=0.5, width=1.41, distance=2.5, cutoff=5.0, switch_start=3.5)

    def atomic_energies(params, system, around):
        traced.append(system.numbers.shape)
        return plain.atomic_energies(params, system, around)

    potential = plain._replace(atomic_energies=atomic_energies)
    monkeypatch.setattr(buckets, "program", lambda params: 0.0)
    systems = [host_system(atoms) for atoms in mixture() + mixture()]
    config = RelaxConfig(fmax=0.05)

    def heard(event: str, seconds: float, fun_name: str = "", **about):
        if event.endswith("backend_compile_duration") and "steps" in fun_name:
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        outcomes = list(stream(potential, models.params_of(plain), systems, config, slots=3, max_programs=3, chunk=4))
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    assert all(o.relaxation.converged for o in outcomes)
    shapes = buckets.plan([buckets.shape(potential, s, config) for s in systems], 3, 0.0)
    assert len(shapes) == len(traced) == len(compiled) == 3
    assert [o.number for o in outcomes] != sorted(o.number for o in outcomes)


def test_precision_is_that_of_the_systems():
    potential = models.morse()
    systems = [host_system(a, np.float32) for a in mixture()[:3]]
    outcomes = list(stream(potential, potential.init(dtype=np.float32), systems, RelaxConfig(fmax=0.05)))
    assert all(o.relaxation.converged and o.relaxation.forces.dtype == np.float32 for o in outcomes)
    with jax.enable_x64(False):  # holds for this thread: the threads that relax must be told
        (alone,) = stream(potential, potential.init(dtype=np.float32), systems[:1], RelaxConfig(fmax=0.05))
    assert outcomes[0].relaxation.energy.dtype == np.float64 and alone.relaxation.energy.dtype == np.float32


def test_frame_parameters_must_be_alike():
    systems = [host_system(a) for a in mixture()[:2]]
    systems[1] = systems[1]._replace(fparam=np.ones(2))
    potential = models.morse()
    first, second = sorted(stream(potential, models.params_of(potential), systems, RelaxConfig(fmax=0.1)))
    assert first.error is None and "fparam has width 2" in second.error


def test_plans_hold_every_shape_and_are_tight():
    rng = np.random.default_rng(0)
    shapes = [
        Shape(int(n), (4 * int(c), 4 * int(min(c, d))), int(n) * 27)
        for n, c, d in rng.integers([1, 2, 1], [50, 40, 20], (300, 3))
    ]
    costs = []
    for limit in (1, 2, 4, 8):
        boxes = buckets.plan(shapes, limit)
        places = [buckets.assign(s, boxes) for s in shapes]
        assert len(boxes) <= limit and None not in places
        costs.append(sum(buckets.work(buckets.row(boxes[k]), s.n_atoms) for k, s in zip(places, shapes, strict=True)))
    assert costs == sorted(costs, reverse=True) and costs[-1] < 0.6 * costs[0]
    assert buckets.plan(shapes[:1], 4) == shapes[:1]


def test_lists_of_atoms_hold_every_structure_once():
    sizes = jnp.array([6, 0, 4, 2, 8, 0, 4, 1, 7, 0])
    starts = lists.laid(sizes, 8)
    seen = []
    n_lists = -(-int(jnp.max(starts + sizes)) // 8)
    for k in range(n_lists):
        where = lists.places(starts, sizes, k, 8)
        assert (np.diff(where.structure) >= 0).all()
        at = np.asarray(where.start)[where.structure] + where.atom
        np.testing.assert_array_equal(at[where.real], np.arange(8)[where.real])
        seen += list(zip(where.structure[where.real].tolist(), where.atom[where.real].tolist(), strict=True))
    assert sorted(seen) == [(k, a) for k, n in enumerate(sizes.tolist()) for a in range(n)]
    assert n_lists == 4  # they are full; there were 5 if a list were closed by a structure that does not fit
    assert np.all(lists.laid(jnp.zeros(3, int), 8) == -1)


def test_searches_of_single_atoms_find_what_a_full_search_finds():
    """After moves far beyond the skin, of some of the structures."""
    potential = models.morse()
    config = RelaxConfig(cell=CellConfig())
    systems = [host_system(a) for a in mixture()]
    shape = Shape(8, (96,), max(buckets.shape(potential, s, config).n_candidates for s in systems))
    still = [slots.Traveller(s, np.zeros((s.n_atoms, 3), bool), s) for s in systems]
    entries = [slots.entry(potential, config, shape, traveller) for traveller in still]
    before = jax.tree.map(jnp.asarray, slots.stack(entries, len(entries)).lists)
    rng = np.random.default_rng(0)
    moved = [
        s._replace(positions=s.positions + rng.normal(0, 1.5 * (k % 2), (s.n_atoms, 3)), cell=s.cell * 0.97)
        for k, s in enumerate(systems)
    ]
    batch = pytree.stack([pad(s, 8) for s in moved])
    after = jax.jit(lambda old, s: lists.refresh(old, s, potential.shells, config.skin))(before, batch)
    for k, system in enumerate(moved):
        one = pytree.take(after.verlet, k)
        assert not verlet.is_stale(one, pytree.take(batch, k), potential.shells)
        made = verlet.narrow(one._replace(offsets=jnp.zeros((1, 3), int)), pad(system, 8), potential.shells, (96,))
        i, j, images, r = neighbors.host.pairs(system, potential.cutoff)
        expected = sorted(zip(i.tolist(), j.tolist(), *images.T.tolist(), strict=True))
        at = np.nonzero(made.mask)
        got = zip(at[0].tolist(), made.indices[at].tolist(), *np.asarray(made.images)[at].T.tolist(), strict=True)
        assert sorted(got) == expected and not made.overflow


def test_results_are_told_before_all_are_done():
    potential = models.morse()
    systems = [host_system(a) for a in mixture()]
    outcomes = stream(potential, models.params_of(potential), systems, RelaxConfig(fmax=0.05), slots=2, chunk=5)
    first = next(outcomes)
    assert first.relaxation.converged and lamjax.to_ase(first.relaxation.system).get_chemical_formula()
    assert len(list(outcomes)) == len(systems) - 1


def test_a_skewed_cell_is_refused_with_the_remedy_that_mends_it():
    atoms = ase.build.bulk("Cu", "fcc", a=3.5)
    atoms.set_cell(np.array([[1, 0, 0], [9, 1, 0], [2, 15, 1]]) @ atoms.cell.array)
    potential = lamjax.classical.lennard_jones(cutoff=6.0)
    with pytest.raises(ValueError, match=r"faces are .* Å apart.*minkowski_reduce"):
        buckets.check(potential, lamjax.from_ase(atoms), RelaxConfig())
    atoms.set_cell(atoms.cell.minkowski_reduce()[0])
    buckets.check(potential, lamjax.from_ase(atoms), RelaxConfig())
