"""What lists of structures may be made of, and what is not lost on the way."""

import ase
import ase.build
import bound_models as models
import jax
import numpy as np
import pytest
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms, FixBondLength, FixCartesian

import lamjax
from lamjax import classical
from lamjax.relaxation import GradientFlowConfig, Relaxation, RelaxConfig, relax, relax_structures, stream
from lamjax.system import fixed_mask, host_system, pad, to_ase

POTENTIAL = models.morse()
PARAMS = models.params_of(POTENTIAL)
SHORT = RelaxConfig(fmax=1e-9, max_steps=2)  # one shape and one config: compiled once
pytestmark = pytest.mark.filterwarnings("ignore:.*did not converge")


def trimer(k: int = 0) -> ase.Atoms:
    return ase.Atoms("Cu3", [(0, 0, 0), (2.2 + 0.01 * k, 0, 0), (1, 2.1, 0.2)])


def ends(systems, **options) -> list[np.ndarray]:
    return [r.system.positions for r in relax_structures(POTENTIAL, PARAMS, systems, SHORT, slots=2, **options)]


def test_structures_come_in_every_form():
    atoms = [trimer(k) for k in range(2)]
    expected = ends([host_system(a) for a in atoms])
    for given in (atoms, tuple(atoms), (a for a in atoms), [lamjax.from_ase(a) for a in atoms], iter(atoms)):
        np.testing.assert_array_equal(ends(given), expected)
    for one in (atoms[0], host_system(atoms[0])):
        (got,) = ends(one)
        np.testing.assert_array_equal(got, expected[0])
        assert [o.number for o in stream(POTENTIAL, PARAMS, one, SHORT, slots=2)] == [0]
    whole = [host_system(a)._replace(positions=np.array([(0, 0, 0), (2, 0, 0), (1, 2, 0)])) for a in atoms]
    floating = [s._replace(positions=s.positions.astype(float)) for s in whole]
    np.testing.assert_array_equal(ends(whole), ends(floating))
    assert ends([]) == []


def test_what_is_no_list_of_structures_is_said():
    with pytest.raises(TypeError, match=r"got the text 'starts.extxyz'. lamjax.data.read reads files"):
        relax_structures(POTENTIAL, PARAMS, "starts.extxyz", SHORT)
    with pytest.raises(ValueError, match=r"number 1: A structure is a lamjax.System or an ase.Atoms, got str"):
        relax_structures(POTENTIAL, PARAMS, [trimer(), "starts.extxyz"], SHORT, slots=2)
    with pytest.raises(ValueError, match="fixed has 1 entries for 2 structures"):
        relax_structures(POTENTIAL, PARAMS, [trimer(), trimer()], SHORT, fixed=[None])
    with pytest.raises(ValueError, match="There are 3 names for 1 structures"):
        relax_structures(POTENTIAL, PARAMS, [trimer()], SHORT, names="abc")
    with pytest.raises(ValueError, match=r"number 0: fixed has shape \(2,\); expected \(3, 3\).*or \(3,\)"):
        relax_structures(POTENTIAL, PARAMS, [trimer()], SHORT, fixed=[np.zeros(2, bool)], slots=2)


def test_what_is_fixed_stays_however_it_is_said():
    first = np.array([True, False, False])
    held = trimer()
    held.set_constraint([FixAtoms([0]), FixCartesian([1], [True, False, False])])
    moved = [np.abs(x - trimer().positions) for x in ends([trimer(), trimer(), held], fixed=[first, None, None])]
    assert not moved[0][0].any() and moved[0][1:].all(axis=0)[:2].all()
    assert moved[1][0, :2].all()
    assert not moved[2][0].any() and moved[2][1, 0] == 0 and moved[2][1, 1] > 0
    (alone,) = ends(trimer(), fixed=first)
    np.testing.assert_array_equal(np.abs(alone - trimer().positions), moved[0])
    held.set_constraint(FixBondLength(0, 1))
    with pytest.warns(UserWarning, match="FixBondLengths do not count"):
        ends([held])


def test_flags_and_numbers_are_told_apart():
    numbers = np.array([29, 29, 29])
    assert fixed_mask([True, False, True], numbers).tolist() == [[True] * 3, [False] * 3, [True] * 3]
    assert fixed_mask(np.eye(3, dtype=int), numbers).tolist() == np.eye(3, dtype=bool).tolist()
    assert fixed_mask(np.eye(2, dtype=bool), np.full((2, 2), 29)).shape == (2, 2, 3)
    with pytest.raises(ValueError, match=r"numbers of type int64.*numpy.isin"):
        fixed_mask([0, 1, 2], numbers)
    with pytest.raises(ValueError, match=r"fixed has shape \(3, 1\)"):
        fixed_mask(np.zeros((3, 1), bool), numbers)


class FailsTwice:
    """Structures of which one can be read once and not again."""

    def __init__(self, n: int, bad: int):
        self.n, self.bad, self.reads = n, bad, [0] * n

    def __len__(self):
        return self.n

    def __getitem__(self, k):
        self.reads[k] += 1
        if k == self.bad and self.reads[k] > 1:
            raise OSError("the disk is gone")
        return host_system(trimer(k))


@pytest.mark.parametrize("bad", [0, 2, 4])
def test_a_structure_that_cannot_be_read_again_is_told_and_no_other_is_lost(bad):
    systems = FailsTwice(5, bad)
    outcomes = {o.number: o for o in stream(POTENTIAL, PARAMS, systems, SHORT, slots=2)}
    assert sorted(outcomes) == [0, 1, 2, 3, 4] and systems.reads[bad] == 2
    assert outcomes[bad].error == "the disk is gone" and outcomes[bad].relaxation is None
    assert all(outcomes[k].error is None and outcomes[k].relaxation.n_steps == 2 for k in outcomes if k != bad)


def test_a_relaxation_becomes_atoms_with_results():
    lj = classical.lennard_jones(sigma=2.3, epsilon=0.2, cutoff=6.0, switch_start=5.999999)
    crystal = ase.build.bulk("Cu", "fcc", a=3.7)
    crystal.set_cell(crystal.cell.array @ (np.eye(3) + 0.02 * np.random.default_rng(0).normal(size=(3, 3))), True)
    for start in (trimer(), crystal):
        system = pad(host_system(start), 4)
        prediction = lamjax.predict(lj, lj.init(), system, lamjax.allocate(lj, system))
        flags = [np.zeros(())] * 8
        atoms = to_ase(Relaxation(system, prediction.energy, prediction.forces, prediction.virial, *flags))
        reference = atoms.copy()
        reference.calc = LennardJones(sigma=2.3, epsilon=0.2, rc=6.0 - 1e-6, smooth=False)
        assert len(atoms) == len(start)
        np.testing.assert_allclose(atoms.get_forces(), reference.get_forces(), atol=1e-8)
        assert atoms.get_potential_energy() == atoms.get_potential_energy(force_consistent=True) == prediction.energy
        if start.pbc.all():
            np.testing.assert_allclose(atoms.get_stress(), reference.get_stress(), atol=1e-9)
    (relaxed,) = relax_structures(POTENTIAL, PARAMS, [trimer()], SHORT, slots=2)
    assert to_ase(relaxed).get_potential_energy() == relaxed.energy
    with pytest.raises(TypeError, match="System or a Relaxation, got Atoms"):
        to_ase(crystal)


def test_relax_takes_atoms_and_their_constraints():
    held = trimer()
    held.set_constraint(FixAtoms([0]))
    lists = lamjax.allocate(POTENTIAL, held)
    config = RelaxConfig(fmax=0, minimiser=GradientFlowConfig(), max_steps=1)
    relaxed = jax.jit(lambda: relax(POTENTIAL, PARAMS, held, lists, config))()
    moved = np.abs(np.asarray(relaxed.system.positions) - held.positions)
    assert not moved[0].any() and moved[1:, :2].all() and relaxed.n_steps == 1
