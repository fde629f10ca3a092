"""Every fault is planted in frames that are right, and found; frames that are right raise no alarm."""

import json
import re
from pathlib import Path

import ase
import ase.build
import ase.io
import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from typer.testing import CliRunner

from lamjax import data, units
from lamjax.audit import verdicts
from lamjax.cli import app

ASSETS = Path(__file__).parents[2] / "lamjax" / "assets" / "demo"


def labelled(atoms: ase.Atoms) -> ase.Atoms:
    """With EMT's energy, forces and stress as REF_ labels."""
    copy = atoms.copy()
    copy.calc = EMT()
    result = atoms.copy()
    result.info |= {"REF_energy": copy.get_potential_energy(), "REF_stress": copy.get_stress(voigt=False)}
    result.arrays["REF_forces"] = copy.get_forces(apply_constraint=False)
    return result


@pytest.fixture(scope="module")
def good():
    """Two runs of copper: displaced atoms in one cell, and one crystal under strains."""
    rng, frames = np.random.default_rng(0), []
    for k in range(36):
        atoms = ase.build.bulk("Cu", "fcc", a=3.6, cubic=True)
        if k < 26:
            atoms.positions += 0.03 * rng.normal(size=(4, 3))
        else:
            strain = 0.004 * rng.normal(size=(3, 3))
            atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain + strain.T), scale_atoms=True)
        frames.append(labelled(atoms))
    return frames


def audit(*sets):
    frames = {
        f"set {k}": [data.from_atoms(a, source=f"set {k} frame {i}") for i, a in enumerate(s)]
        for k, s in enumerate(sets)
    }
    return data.audit(frames)


def changed(frames, change, *which):
    """Copies, of which those numbered (or all) are changed."""
    copies = [a.copy() for a in frames]
    for k in which or range(len(copies)):
        copies[k] = change(copies[k]) or copies[k]
    return copies


def scaled(key: str, factor: float):
    def change(atoms):
        if key in atoms.arrays:
            atoms.arrays[key] = factor * atoms.arrays[key]
        else:
            atoms.info[key] = factor * np.asarray(atoms.info[key])

    return change


def stress_as_virial(atoms):
    atoms.info["REF_virial"] = atoms.info.pop("REF_stress")


def virial_as_stress(atoms):
    atoms.info["REF_stress"] = -atoms.info["REF_stress"] * atoms.get_volume()


def test_what_is_right_raises_no_alarm(good):
    report = audit(good)
    assert report.findings == ()
    (one,) = report.sets
    assert one.n_frames == 36 and one.n_atoms == (4, 4.0, 4) and one.elements == {"Cu": 36}
    assert one.labelled == {"energy": 36, "forces": 36, "virial": 36}
    assert one.forces.startswith("the forces are right") and one.virial.startswith("stress and virial are right")
    counts, energies = np.full(36, 4.0), np.array([a.info["REF_energy"] for a in good])
    assert one.references["Cu"] == pytest.approx(energies @ counts / (counts @ counts), rel=1e-9)


WRONG = {
    "stress sign": (scaled("REF_stress", -1), "stress or virial has the wrong sign: .* say of them: -"),
    "stress GPa": (scaled("REF_stress", 1 / units.GPA), "the stress is in GPa: "),
    "stress kbar": (scaled("REF_stress", 1 / units.KBAR), "the stress is in kbar: "),
    "stress VASP": (scaled("REF_stress", -1 / units.KBAR), "the stress is in kbar and of VASP's sign"),
    "stress as virial": (stress_as_virial, "a stress is stored as virial"),
    "virial as stress": (virial_as_stress, "a virial is stored as stress"),
    "forces sign": (scaled("REF_forces", -1), "the forces have the wrong sign"),
    "forces hartree/bohr": (
        scaled("REF_forces", verdicts.BOHR / verdicts.HARTREE),
        "the forces are in hartree/bohr",
    ),
    "energies hartree": (scaled("REF_energy", 1 / verdicts.HARTREE), "the energies are in hartree"),
    "forces kcal": (scaled("REF_forces", 1 / verdicts.KCAL), "the forces are in kcal/mol/Å"),
}


@pytest.mark.parametrize("fault", list(WRONG))
def test_wrong_signs_and_units_are_named(good, fault):
    change, expected = WRONG[fault]
    report = audit(changed(good, change))
    errors = [f.what for f in report.findings if f.severity == "error"]
    assert any(re.search(expected, text) for text in errors), (fault, report.findings)


def per_atom(atoms):
    atoms.info["REF_energy"] /= len(atoms)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (per_atom, "the energies are per atom"),
        (scaled("REF_energy", 1 / verdicts.KCAL), "the energies are in kcal/mol, not the forces"),
        (scaled("REF_forces", 1 / (verdicts.KJ / 10)), "the forces are in kJ/mol/nm"),
    ],
)
def test_other_units_of_energies_and_forces(good, change, expected):
    (error,) = [f for f in audit(changed(good, change)).findings if f.severity == "error"]
    assert expected in error.what


def test_the_order_of_frames_does_not_matter(good):
    """Partners are the most similar frames, not the neighbours in the file."""
    rows = np.random.default_rng(3).permutation(len(good))
    one = audit([good[k] for k in rows]).sets[0]
    assert one.forces.startswith("the forces are right") and one.virial.startswith("stress and virial are right")


def test_a_part_of_the_frames_with_the_wrong_sign(good):
    wrong = changed(good, scaled("REF_stress", -1), *range(30, 36))
    (error,) = [f for f in audit(wrong).findings if f.severity == "error"]
    assert "in a part of the frames stress or virial has the wrong sign" in error.what
    named = {int(name.split()[-1]) for name in error.frames}
    assert len(named) >= 4 and named <= set(range(30, 36))  # and only those


def test_a_placeholder_for_the_virial(good):
    findings = audit(changed(good, scaled("REF_stress", 0.0), 2, 7)).findings
    (warning,) = [f for f in findings if "exactly zero" in f.what]
    assert warning.frames == ("set 0 frame 2", "set 0 frame 7")


def test_one_wild_energy_does_not_move_the_energies_of_the_elements(good):
    def wild(atoms):
        atoms.info["REF_energy"] += 4000.0

    right, wrong = audit(good).sets[0], audit(changed(good, wild, 5))
    assert wrong.sets[0].references["Cu"] == pytest.approx(right.references["Cu"], abs=1e-3)
    (error,) = [f for f in wrong.findings if f.severity == "error"]
    assert error.where == "set 0 frame 5" and "energies far from the fit" in error.what


@pytest.mark.parametrize("sign", [1, -1])
def test_the_normal_of_a_slab_tells_the_virial(sign):
    rng, frames = np.random.default_rng(2), []
    for _ in range(5):
        atoms = ase.build.fcc111("Cu", (2, 2, 3), vacuum=8.0, periodic=True)
        atoms.positions += 0.2 * rng.normal(size=(12, 3)) + [0, 0, 7]
        atoms.wrap()
        frames.append(labelled(atoms))
    report = audit(changed(frames, scaled("REF_stress", sign)))
    text = [f.what for f in report.findings if f.severity == "error"]
    if sign == 1:
        assert not text and report.sets[0].virial.startswith("stress and virial are right")
    else:
        assert len(text) == 1 and "wrong sign" in text[0] and "over what the virials say" in text[0]


def test_a_cluster_in_vacuum_tells_the_virial():
    rng, frames = np.random.default_rng(1), []
    for _ in range(4):
        atoms = ase.Atoms("Cu4", [[0, 0, 0], [2.5, 0, 0], [0, 2.5, 0], [0, 0, 2.5]], cell=[22, 23, 24], pbc=True)
        atoms.positions += 0.5 * rng.normal(size=(4, 3)) + [21, 1, 2]  # across the boundary of the cell
        atoms.wrap()
        frames.append(labelled(atoms))
    assert audit(frames).sets[0].virial.startswith("stress and virial are right")
    (error,) = [f for f in audit(changed(frames, scaled("REF_stress", -1))).findings if f.severity == "error"]
    assert "wrong sign" in error.what and error.n == 4


def test_where_nothing_can_be_compared_it_says_so(good):
    one = audit(changed(good[:1], scaled("REF_stress", -1)))
    assert one.findings == () and one.sets[0].virial == one.sets[0].forces == "not testable (0 comparisons)"
    large = audit(changed(good[:1], scaled("REF_stress", 1e4)))
    assert [f.severity for f in large.findings] == ["warning"] and "GPa or kbar?" in large.findings[0].what


def test_forces_without_those_of_constrained_atoms(good):
    def constrained(atoms):
        forces = atoms.arrays["REF_forces"]
        forces[FixAtoms([0, 1]).index] = 0

    (error,) = audit(changed(good, constrained, 3)).findings
    assert error.severity == "error" and error.where == "set 0 frame 3" and "constraints" in error.what


def far_energy(atoms):
    atoms.info["REF_energy"] += 4 * 3.0


def close_atoms(atoms):
    atoms.positions[1] = atoms.positions[0] + [0.8, 0, 0]


def large_force(atoms):
    atoms.arrays["REF_forces"][2] = [0, 0, 77.0]


def skewed(atoms):
    atoms.info["REF_stress"] = atoms.info["REF_stress"] + [[0, 0.1, 0], [0, 0, 0], [0, 0, 0]]


SINGLE = {
    "energy": (far_energy, "warning", r"energies far from the fit .* \+[23].\d+ eV/atom"),
    "distance": (close_atoms, "error", "atoms closer than 0.30 of their covalent radii"),
    "force": (large_force, "warning", r"forces above 20 eV/Å \(largest: 77.0\)"),
    "skew": (skewed, "warning", "virials that are not symmetric"),
    "missing": (lambda atoms: atoms.info.pop("REF_stress") is None, "note", "no virial label"),
}


@pytest.mark.parametrize("fault", list(SINGLE))
def test_single_frames_are_named(good, fault):
    change, severity, expected = SINGLE[fault]
    findings = [f for f in audit(changed(good, change, 5)).findings if f.where == "set 0 frame 5"]
    assert any(f.severity == severity and re.search(expected, f.what) for f in findings), findings


def test_copies_within_and_between_sets(good):
    moved = good[2].copy()
    moved.positions += moved.cell[0] - 2 * moved.cell[2]  # the same crystal
    moved.info["REF_energy"] += 0.4
    findings = audit([*good, moved], [*changed(good[3:4], lambda a: None), *changed(good[8:9], far_energy)]).findings
    inside, same, other = (f for f in findings if "copies" in f.what or "are in set 0 too" in f.what)
    assert inside.where == "set 0 frame 36" and "two labels of one structure" in inside.remedy
    assert "the first of set 0 frame 2; their energies differ by up to 0.1" in inside.what
    for k, one in enumerate((same, other)):
        assert one.set == "set 1" and one.frames == (f"set 1 frame {k}",) and "frames that are in set 0 too" in one.what
    assert "energies differ by up to 3 eV/atom" in other.what and "energies differ" not in same.what


def test_lonely_and_single_atoms(good):
    lonely = ase.Atoms("Cu3", [[0, 0, 0], [2.5, 0, 0], [9, 9, 9]], cell=[18, 18, 18], pbc=True)
    single = ase.Atoms("Cu", cell=[15, 15, 15], pbc=True)
    findings = audit([*good, labelled(lonely), labelled(single)]).findings
    texts = {(f.where, f.what) for f in findings}
    assert ("set 0 frame 36", "atoms without a neighbour within 6 Å (most in a frame: 1)") in texts
    assert ("set 0 frame 37", "single atoms") in texts


def test_another_level_of_theory_is_seen_where_compositions_allow_it(good):
    def shifted(atoms):
        atoms.info["REF_energy"] -= 4 * 1.7
        atoms.positions += 0.01

    (warning,) = audit(good, changed(good, shifted)).findings
    assert "energies lie -1.70 eV/atom from those of set 0" in warning.what and "a head of its own" in warning.remedy
    other = [labelled(ase.build.bulk("Al", "fcc", a=4.05 + 0.01 * k, cubic=True)) for k in range(3)]
    assert audit(good, other).findings == ()


def test_real_relaxations_are_right():
    frames = data.read(ASSETS / "si_defects_heldout.extxyz.gz")
    report = data.audit({"silicon": frames})
    assert not [f for f in report.findings if f.severity == "error"]
    assert "right" in report.sets[0].forces


def run(*arguments):
    return CliRunner().invoke(app, ["data", "check", *map(str, arguments)])


def test_the_command_prints_everything_and_ends_with_a_status(good, tmp_path):
    ase.io.write(tmp_path / "good.extxyz", good)
    result = run(tmp_path / "good.extxyz")
    assert result.exit_code == 0 and "Nothing suspicious" in result.output, result.output
    broken = changed(good, scaled("REF_stress", -1))
    broken[4].info["REF_energy"] = np.nan
    ase.io.write(tmp_path / "bad.extxyz", broken)
    result = run(tmp_path / "bad.extxyz", "--json", tmp_path / "audit.json")
    text = " ".join(result.output.split())
    assert result.exit_code == 1
    assert "bad.extxyz, frame 4: The energy label holds a value that is not finite" in text
    assert "stress or virial has the wrong sign" in text
    stored = json.loads((tmp_path / "audit.json").read_text())
    assert stored["sets"][0]["n_frames"] == 35 and stored["findings"][0]["severity"] == "error"
    (tmp_path / "empty.extxyz").write_text("")
    result = run(tmp_path / "empty.extxyz", tmp_path / "good.extxyz")
    assert result.exit_code == 1 and "the file is empty" in result.output  # and the other file is looked at
