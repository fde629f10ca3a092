"""Files that do not say what relaxes to what: trajectories of one relaxation, and relaxed structures alone."""

import ase
import ase.build
import ase.io
import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.optimize import BFGS

from lamjax.data import from_atoms, pairs_from_frames, read, read_pairs


def relax(path, seed: int, fixed=()) -> ase.Atoms:
    """ASE's own trajectory of a relaxation of four copper atoms."""
    atoms = ase.build.bulk("Cu", cubic=True)
    atoms.set_constraint(FixAtoms(list(fixed)))
    atoms.positions += np.random.default_rng(seed).normal(0, 0.1, (4, 3))
    atoms.calc = EMT()
    BFGS(atoms, trajectory=str(path), logfile=None).run(fmax=0.05)
    return atoms


def step(positions, force: float, energy: float = 0.0, symbols: str = "Cu2") -> ase.Atoms:
    atoms = ase.Atoms(symbols, positions)
    forces = np.array([[force, 0, 0], [-force, 0, 0]])
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


def dimer(distance: float, force: float, **more) -> ase.Atoms:
    return step([[0, 0, 0], [distance, 0, 0]], force, **more)


def test_a_trajectory_of_ase_is_one_relaxation_and_several_are_several(tmp_path):
    for k in range(2):
        (tmp_path / f"run{k}").mkdir()
        end = relax(tmp_path / f"run{k}" / "relax.traj", seed=k, fixed=[k])
    files = [tmp_path / f"run{k}" / "relax.traj" for k in range(2)]
    first, second = read_pairs(files)
    raw = ase.io.read(files[1], ":")
    np.testing.assert_array_equal(second.start.positions, raw[0].positions)
    np.testing.assert_array_equal(second.target.positions, end.positions)
    assert first.fixed[0].all() and not first.fixed[1:].any() and second.fixed[1].all()
    assert [pair.info["trajectory"] for pair in (first, second)] == [str(file) for file in files]
    assert str(files[0]) in first.source
    (same,) = pairs_from_frames(read(files[0]))
    np.testing.assert_array_equal(same.target.positions, first.target.positions)


def test_ionic_steps_of_vasp_are_one_relaxation(tmp_path):
    """A vasprun.xml with two ionic steps, as little as ASE reads."""
    cell = "".join(f"<v> {' '.join(map(str, row))} </v>" for row in 5 * np.eye(3))

    def calculation(distance, force, energy):
        energies = "".join(f'<i name="{name}"> {energy} </i>' for name in ("e_fr_energy", "e_wo_entrp", "e_0_energy"))
        return f"""<calculation><scstep><energy>{energies}</energy></scstep><structure><crystal><varray name="basis">
        {cell}</varray></crystal><varray name="positions"><v> 0 0 0 </v><v> {distance / 5} 0 0 </v></varray></structure>
        <varray name="forces"><v> {force} 0 0 </v><v> {-force} 0 0 </v></varray><energy>{energies}</energy>
        </calculation>"""

    atoms = "".join("<rc><c>Cu</c><c>1</c></rc>" for _ in range(2))
    start = calculation(2.6, 0.5, -1.0)
    begin = start[start.index("<structure>") : start.index("</structure>")].replace("<structure>", "")
    (tmp_path / "vasprun.xml").write_text(
        f"""<?xml version="1.0"?><modeling><kpoints/><parameters/><atominfo>
        <array name="atoms"><set>{atoms}</set></array></atominfo><structure name="initialpos">{begin}</structure>
        {start}{calculation(2.4, 0.01, -1.2)}</modeling>"""
    )
    (pair,) = read_pairs(tmp_path / "vasprun.xml")
    np.testing.assert_allclose([pair.start.positions[1, 0], pair.target.positions[1, 0]], [2.6, 2.4])
    assert pair.labels.energy == pytest.approx(-1.2)


REFUSED = {
    r"frame 1 is relaxed .* and frame 2 is not .*several relaxations": [
        dimer(2.6, 1.0, energy=0.0), dimer(2.4, 0.01, energy=-1.0), dimer(2.7, 1.0, energy=-0.9),
        dimer(2.4, 0.01, energy=-1.1),
    ],
    "energy rises by 1 eV from the first to the last of 2 frames": [dimer(2.4, 0.2), dimer(2.6, 0.02, energy=1.0)],
    "Cu2 in the first frame, CuO in frame 1: not one relaxation": [
        dimer(2.6, 1.0), dimer(2.4, 0.01, symbols="CuO", energy=-1.0)
    ],
    r"the target is not relaxed, its largest force is 0.5 eV/Å": [dimer(2.6, 1.0), dimer(2.5, 0.5, energy=-1.0)],
    "frame 0: nothing says where the structure relaxes to. Give all steps": [dimer(2.4, 0.01)],
    "frame 0: nothing says": [dimer(2.4, 0.01), dimer(2.41, 0.02, energy=-0.1)],
    "frame 1: nothing says": [ase.Atoms("Cu2", [[0, 0, 0], [2.5, 0, 0]])] * 2,
}  # fmt: skip


@pytest.mark.parametrize("message", list(REFUSED))
def test_what_is_no_single_relaxation_is_refused(message, tmp_path):
    ase.io.write(tmp_path / "a.traj", REFUSED[message])
    with pytest.raises(ValueError, match=f"(?s)No pair of start and target.*{message}"):
        read_pairs(tmp_path / "a.traj")


def test_targets_alone_are_enough_where_nothing_begins_elsewhere(tmp_path):
    relaxed = [dimer(2.4, 0.01), dimer(2.41, 0.02, symbols="CuO"), dimer(2.42, 0.0)]
    ase.io.write(tmp_path / "relaxed.extxyz", relaxed)
    pairs = read_pairs(tmp_path / "relaxed.extxyz", targets_alone=True)
    assert [pair.target.positions[1, 0] for pair in pairs] == pytest.approx([2.4, 2.41, 2.42])
    assert all(np.array_equal(pair.start.positions, pair.target.positions) for pair in pairs)
    ase.io.write(tmp_path / "steps.traj", [dimer(2.6, 1.0), dimer(2.4, 0.01, energy=-1.0)])
    (pair,) = read_pairs(tmp_path / "steps.traj", targets_alone=True)  # a step on the way is no target
    assert (pair.start.positions[1, 0], pair.target.positions[1, 0]) == (2.6, 2.4)
    ase.io.write(tmp_path / "wild.traj", dimer(2.6, 1.0))
    with pytest.raises(ValueError, match="the target is not relaxed"):
        read_pairs(tmp_path / "wild.traj", targets_alone=True)


def test_partners_that_are_missing_are_not_missed_with_targets_alone():
    target, last = dimer(2.4, 0.01), dimer(2.4, 0.01)
    target.info |= {"pair_id": "a", "role": "target"}
    last.info |= {"relax_id": "b", "step": 9, "n_steps": 10}
    frames = [from_atoms(atoms, source=f"x frame {k}") for k, atoms in enumerate((target, last))]
    assert len(pairs_from_frames(frames, targets_alone=True)) == 2
    with pytest.raises(ValueError, match="(?s)needs one start and one target.*is missing"):
        pairs_from_frames(frames)
