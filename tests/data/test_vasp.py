"""OUTCAR and vasprun.xml: unconverged steps, the free energy, stresses."""

import bz2
import gzip
import lzma

import ase.io
import numpy as np
import pytest
from ase.constraints import FixAtoms

from lamjax import data, units

KBAR = np.array([10.0, 20.0, 30.0, 1.0, 2.0, 3.0])  # xx yy zz xy yz zx, positive under compression as VASP writes it
REACHED = "--------------- aborting loop because EDIFF is reached ---------------"
NOT_REACHED = "--------------- aborting loop EDIFF was not reached (unconverged)  ---------------"


def step(number: int, iterations: int, end: str) -> str:
    """One ionic step of an OUTCAR; the free energy is -number, E(sigma -> 0) 0.25 eV lower."""
    loop = [
        f"----------- Iteration {number:4d}({k + 1:4d})  -----------\n  energy without entropy"
        for k in range(iterations)
    ]
    return "\n".join(
        [
            *loop,
            end,
            "  in kB  " + " ".join(f"{x:10.5f}" for x in KBAR),
            "      direct lattice vectors                 reciprocal lattice vectors",
            *(" ".join(f"{x:12.9f}" for x in (*row, *row)) for row in np.diag([3.0, 4.0, 5.0])),
            " POSITION                                       TOTAL-FORCE (eV/Angst)",
            " " + "-" * 70,
            f" 0.0 0.0 {number / 100} 0.1 0.2 0.3",
            " 1.5 2.0 2.5 -0.1 -0.2 -0.3",
            " " + "-" * 70,
            "  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)",
            "  " + "-" * 50,
            f"  free  energy   TOTEN  = {-number:18.8f} eV",
            "",
            f"  energy  without entropy= {-number:18.8f}  energy(sigma->0) = {-number - 0.25:18.8f}",
        ]
    )


def outcar(path, *steps: str, nelm: int = 4):
    head = " vasp.6.4.1\n POTCAR:    PAW_PBE Cu 22Jun2005\n POTCAR:    PAW_PBE Cu 22Jun2005\n"
    head += f"   ISPIN  =      1    spin\n   NELM   =  {nelm:5d};   NELMIN=  2; NELMDL= -5     # of ELM steps\n"
    path.write_text("\n".join([head + "   ions per type =               2", *steps, " General timing", ""]))
    return path


def test_unconverged_steps_of_an_outcar_are_left_out_and_counted(tmp_path):
    steps = [
        step(1, 3, REACHED),
        step(2, 4, ""),  # older versions write nothing
        step(3, 4, REACHED),  # converged in the very last iteration
        step(4, 2, NOT_REACHED),
        step(5, 4, NOT_REACHED),
        step(6, 2, ""),  # an old version, or lines were removed: below NELM
    ]
    with pytest.warns(UserWarning, match="OUTCAR.*electronic loop of 3 of 6 ionic steps ended at NELM.*left out"):
        frames = data.read(outcar(tmp_path / "OUTCAR", *steps))
    assert [float(frame.labels.energy) for frame in frames] == [-1, -3, -6]


def test_an_outcar_gives_the_free_energy_and_stresses_in_tension(tmp_path):
    path = outcar(tmp_path / "OUTCAR", step(1, 2, REACHED))
    (frame,) = data.read(path)
    assert frame.labels.energy == -1 and frame.keys[0] == "free_energy"
    assert ase.io.read(path).get_potential_energy() == -1.25
    xx, yy, zz, xy, yz, zx = KBAR * units.KBAR * 60.0  # V = 60 Å³; compression is a positive virial
    np.testing.assert_allclose(frame.labels.virial, [(xx, xy, zx), (xy, yy, yz), (zx, yz, zz)])
    notes: list = []
    list(data.iterate(path, on_remark=notes.append))
    assert [note.severity for note in notes] == ["note"] and "free energy is taken" in notes[0].what
    (chosen,) = data.read(path, options=data.ReadOptions(energy_key="energy"))
    assert chosen.labels.energy == -1.25


def test_a_file_of_which_nothing_converged_says_so(tmp_path):
    with pytest.raises(ValueError, match="no structure in it: the electronic loop of 1 of 1 ionic steps"):
        data.read(outcar(tmp_path / "OUTCAR", step(1, 4, "")))


@pytest.mark.parametrize("name", ["run@300K.OUTCAR.gz", "result.txt"])
def test_an_outcar_of_another_name_is_known_by_its_content(tmp_path, name):
    path = outcar(tmp_path / "OUTCAR", step(1, 2, REACHED), step(2, 2, REACHED))
    packed = gzip.compress(path.read_bytes()) if name.endswith("gz") else path.read_bytes()
    (tmp_path / name).write_bytes(packed)
    assert len(data.read(tmp_path / name)) == 2


def test_constraints_of_the_folder_hold_for_a_packed_outcar(tmp_path):
    atoms = ase.io.read(outcar(tmp_path / "OUTCAR", step(1, 2, REACHED)))
    atoms.set_constraint(FixAtoms([1]))
    ase.io.write(tmp_path / "POSCAR", atoms, format="vasp")
    (tmp_path / "OUTCAR.bz2").write_bytes(bz2.compress((tmp_path / "OUTCAR").read_bytes()))
    for name in ("OUTCAR", "OUTCAR.bz2"):
        (frame,) = data.read(tmp_path / name)
        np.testing.assert_array_equal(frame.info["fixed"], [[False] * 3, [True] * 3])
        np.testing.assert_array_equal(frame.labels.forces[1], (-0.1, -0.2, -0.3))  # without constraints


def vasprun(path, *electronic_steps: int, nelm: int = 4):
    """A vasprun.xml whose ionic steps have so many electronic ones."""
    v = "<v>{} {} {}</v>"
    cell = "".join(v.format(*row) for row in np.diag([3.0, 4.0, 5.0]))
    structure = f'<crystal><varray name="basis">{cell}</varray></crystal>'
    structure += f'<varray name="positions">{v.format(0, 0, 0)}{v.format(0.5, 0.5, 0.5)}</varray>'
    atoms = "<set><rc><c>Cu</c><c>1</c></rc><rc><c>Cu</c><c>1</c></rc></set>"

    def energies(k: int) -> str:
        pairs = {"e_fr_energy": -k, "e_wo_entrp": -k, "e_0_energy": -k - 0.25}
        return "<energy>" + "".join(f'<i name="{name}">{x}</i>' for name, x in pairs.items()) + "</energy>"

    steps = [
        "<calculation>"
        + f"<scstep>{energies(k)}</scstep>" * n
        + f'<structure>{structure}</structure><varray name="forces">{v.format(1, 2, 3)}{v.format(-1, -2, -3)}</varray>'
        + energies(k)
        + "</calculation>"
        for k, n in enumerate(electronic_steps, 1)
    ]
    parameters = f'<parameters><separator><i type="int" name="NELM">{nelm}</i></separator></parameters>'
    kpoints = '<kpoints><varray name="kpointlist"></varray><varray name="weights"></varray></kpoints>'
    content = f'{kpoints}{parameters}<atominfo><array name="atoms">{atoms}</array></atominfo>'
    content += f'<structure name="initialpos">{structure}</structure>' + "".join(steps)
    path.write_text(f'<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>{content}</modeling>\n')
    return path


def test_unconverged_steps_of_a_vasprun_are_left_out_and_counted(tmp_path):
    with pytest.warns(UserWarning, match="electronic loop of 2 of 4 ionic steps"):
        frames = data.read(vasprun(tmp_path / "vasprun.xml", 3, 4, 2, 4))
    assert [float(frame.labels.energy) for frame in frames] == [-1, -3]
    np.testing.assert_array_equal(frames[0].labels.forces, [(1, 2, 3), (-1, -2, -3)])


@pytest.mark.parametrize("name", ["vasprun.xml.xz", "step-1.xml"])
def test_a_packed_vasprun(tmp_path, name):
    raw = vasprun(tmp_path / "vasprun.xml", 3, 2).read_bytes()
    (tmp_path / name).write_bytes(lzma.compress(raw) if name.endswith("xz") else raw)
    assert len(data.read(tmp_path / name)) == 2


def test_a_vasprun_that_was_cut_short_gives_its_whole_steps(tmp_path):
    path = vasprun(tmp_path / "vasprun.xml", 3, 2, 2)
    path.write_text(path.read_text().rpartition("<calculation>")[0])
    assert len(data.read(path)) == 2
