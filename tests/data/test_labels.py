"""Labels under the names and in the units that codes write, and what is said of those that are not taken."""

import ase.build
import ase.io
import ase.units
import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from lamjax import data, units
from lamjax.data import ReadOptions, labels

STRESS = np.array([[0.01, 0.004, 0.003], [0.004, 0.02, 0.005], [0.003, 0.005, 0.03]])  # eV/Å³
FORCES = np.arange(12.0).reshape(4, 3)


def crystal(**info) -> ase.Atoms:
    atoms = ase.build.bulk("Cu", "fcc", a=3.5, cubic=True)
    atoms.rattle(0.02, seed=1)
    atoms.info |= info
    return atoms


def nine(tensor) -> str:
    return " ".join(map(repr, np.asarray(tensor).ravel().tolist()))


def write(path, header: str, forces: str = "forces", atoms=None):
    """One frame of extxyz with the given header."""
    atoms = crystal() if atoms is None else atoms
    lattice = f'Lattice="{nine(atoms.cell.array)}" ' if atoms.pbc.any() else ""
    rows = [f"Cu {nine(x)} {nine(f)}" for x, f in zip(atoms.positions, FORCES, strict=True)]
    path.write_text("\n".join(["4", f"{lattice}Properties=species:S:1:pos:R:3:{forces}:R:3 {header}", *rows]) + "\n")
    return path


def volume() -> float:
    return crystal().get_volume()


VIRIAL = -volume() * STRESS
DIALECTS = {  # header, column of the forces
    "ASE": (f'energy=-3 stress="{nine(STRESS)}"', "forces"),
    "GPUMD": (f'energy=-3 virial="{nine(VIRIAL)}"', "force"),
    "GPUMD stress": (f'Energy=-3 Stress="{nine(STRESS)}"', "Force"),
    "QUIP": (f'dft_energy=-3 dft_virial="{nine(VIRIAL)}"', "dft_force"),
    "QUIP plain": (f'energy=-3 virial="{nine(VIRIAL)}"', "force"),
    "MACE": (f'REF_energy=-3 REF_stress="{nine(STRESS)}"', "REF_forces"),
    "MACE virials": (f'energy=-3 virials="{nine(VIRIAL)}"', "forces"),
    "janus": (f'dft_energy=-3 dft_stress="{nine(STRESS)}"', "dft_forces"),
    "dpdata": (f'energy=-3 virial="{nine(VIRIAL)}"', "force"),
    "free energy alone": (f'free_energy=-3 stress="{nine(STRESS)}"', "forces"),
    "behind": (f'energy_dft=-3 virial_dft="{nine(VIRIAL)}"', "forces_dft"),
    "capitals": (f'ENERGY=-3 VIRIALS="{nine(VIRIAL)}"', "FORCES"),
    "total": (f'total_energy=-3 virial="{nine(VIRIAL)}"', "forces"),
    "Voigt": (f'energy=-3 stress="{nine(units.to_voigt(STRESS))}"', "forces"),
    "with units": (f'energy=-3 energy-unit=eV force_unit=eV/Angstrom virial="{nine(VIRIAL)}" units=metal', "force"),
}


@pytest.mark.parametrize("name", list(DIALECTS))
def test_dialects_give_the_same_labels(tmp_path, name):
    (frame,) = data.read(write(tmp_path / "one.xyz", *DIALECTS[name]))
    np.testing.assert_array_equal(frame.labels.weights, 1)
    assert frame.labels.energy == -3
    np.testing.assert_array_equal(frame.labels.forces, FORCES)
    np.testing.assert_allclose(frame.labels.virial, VIRIAL, rtol=1e-12)
    assert not {key for key in frame.info if labels.looks_like_label(key)}


def test_stress_and_virial_have_the_signs_of_ase_finite_differences(tmp_path):
    """A compressed crystal: stress negative, virial positive, both the derivative of ASE's energy."""
    atoms = crystal()
    atoms.calc = EMT()
    slopes = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            energies = []
            for step in (-1e-5, 1e-5):
                strain = np.zeros((3, 3))
                strain[i, j] = strain[j, i] = step
                strained = atoms.copy()
                strained.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
                strained.calc = EMT()
                energies.append(strained.get_potential_energy())
            slopes[i, j] = (energies[1] - energies[0]) / 2e-5 / (1 if i == j else 2)
    headers = (f'stress="{nine(atoms.get_stress(voigt=False))}"', f'virial="{nine(-slopes)}"')
    for header in headers:
        (frame,) = data.read(write(tmp_path / "one.xyz", header, atoms=atoms))
        np.testing.assert_allclose(frame.labels.virial, -slopes, atol=1e-5)
    assert np.trace(slopes) < 0


@pytest.mark.parametrize(("high", "low"), [("virial", "stress"), ("stress", "virial")])
def test_a_ref_key_goes_before_a_plain_one_of_the_other_kind(high, low):
    """REF_stress before virial, REF_virial before stress, wherever they are."""
    marked, plain = np.diag([1.0, 2.0, 3.0]), np.diag([7.0, 8.0, 9.0])
    atoms = crystal(**{f"REF_{high}": marked, low: plain})
    frame = data.from_atoms(atoms)
    assert frame.keys[2] == f"REF_{high}"
    np.testing.assert_allclose(frame.labels.virial, marked if high == "virial" else -volume() * marked)
    atoms = crystal(**{f"REF_{high}": marked})
    atoms.calc = SinglePointCalculator(atoms, stress=np.array([7.0, 8.0, 9.0, 0, 0, 0]))
    np.testing.assert_allclose(data.from_atoms(atoms).labels.virial, frame.labels.virial)


def test_of_two_with_the_same_mark_the_virial_is_taken():
    frame = data.from_atoms(crystal(REF_virial=np.eye(3), REF_stress=np.eye(3)))
    assert frame.keys[2] == "REF_virial"
    np.testing.assert_array_equal(frame.labels.virial, np.eye(3))


def test_where_there_are_forces_the_free_energy_is_taken():
    atoms = crystal()
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0, free_energy=-3.1, forces=FORCES)
    frame = data.from_atoms(atoms)
    assert frame.labels.energy == -3.1 and frame.keys[0] == "free_energy"
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0, free_energy=-3.1)
    assert data.from_atoms(atoms).keys[0] == "energy"
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0, free_energy=-3.0, forces=FORCES)
    assert data.from_atoms(atoms).keys[0] == "energy"
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0, free_energy=-3.1, forces=FORCES)
    chosen = data.from_atoms(atoms, options=ReadOptions(energy_key="energy"))
    assert chosen.labels.energy == -3.0
    atoms.info["REF_energy"] = -5.0
    assert data.from_atoms(atoms).labels.energy == -5.0


def test_parts_of_an_energy_that_is_not_there_are_named(tmp_path):
    with pytest.warns(UserWarning, match="frame 0: energies looks like a label and is not taken"):
        (frame,) = data.read(write(tmp_path / "one.xyz", 'energies="-0.5 -1.5"'))
    assert frame.labels.weights[0] == 0
    (frame,) = data.read(write(tmp_path / "two.xyz", 'energy=-2 energies="-0.5 -1.5"'))  # not a word
    assert frame.labels.energy == -2.0


@pytest.mark.parametrize("key", ["mace_energy", "pbe_energy", "TotEnergy", "energy_dftb", "E", "final_energy"])
def test_what_looks_like_a_label_and_is_not_taken_is_named(tmp_path, key):
    path = write(tmp_path / "one.xyz", f"{key}=-3")
    with pytest.warns(UserWarning, match=rf"one.xyz frame 0: {key} looks like a label.*--energy-key {key}"):
        (frame,) = data.read(path)
    assert frame.labels.weights[0] == 0 and frame.info[key] == -3
    (frame,) = data.read(path, options=ReadOptions(energy_key=key))
    assert frame.labels.energy == -3 and frame.keys[0] == key


def test_a_second_energy_with_another_value_is_named(tmp_path):
    with pytest.warns(UserWarning, match="energy looks like a label and is not taken"):
        (frame,) = data.read(write(tmp_path / "one.xyz", "dft_energy=-3 energy=-4"))
    assert frame.labels.energy == -3
    (frame,) = data.read(write(tmp_path / "same.xyz", "dft_energy=-3 energy=-3 total_energy=-3"))
    assert frame.labels.energy == -3


@pytest.mark.parametrize("key", ["kinetic_energy", "energy_weight", "force_std", "e_above_hull", "max_force", "Time"])
def test_what_is_no_label_is_not_named(tmp_path, key):
    (frame,) = data.read(write(tmp_path / "one.xyz", f"energy=-3 {key}=1.5"))
    assert frame.info[key] == 1.5


def test_a_virial_without_a_periodic_cell_is_named(tmp_path):
    path = write(tmp_path / "one.xyz", f'energy=-3 pbc="T T F" virial="{nine(VIRIAL)}"')
    with pytest.warns(UserWarning, match=r"virial is not taken: pbc is \[True, True, False\]"):
        (frame,) = data.read(path)
    np.testing.assert_array_equal(frame.labels.weights, [1, 1, 0])


def test_keys_that_are_chosen(tmp_path):
    path = write(tmp_path / "one.xyz", f'energy=1 pbe=-3 sigma="{nine(STRESS)}" REF_virial="{nine(np.eye(3))}"', "pull")
    options = ReadOptions(energy_key="pbe", forces_key="pull", stress_key="sigma")
    (frame,) = data.read(path, options=options)
    assert frame.keys == ("pbe", "pull", "sigma") and frame.labels.energy == -3
    np.testing.assert_array_equal(frame.labels.forces, FORCES)
    np.testing.assert_allclose(frame.labels.virial, VIRIAL)
    (frame,) = data.read(path, options=ReadOptions("PBE", "Pull", "SIGMA"))
    assert frame.keys == ("pbe", "pull", "sigma")
    with pytest.raises(ValueError, match="'Sx' is no chemical element"):
        ReadOptions(elements=("Si", "Sx"))
    with pytest.raises(ValueError, match=r"one.xyz: no frame has the key 'blyp'.*energy.*The frames have: .*pbe"):
        data.read(path, options=ReadOptions(energy_key="blyp"))
    data.write_store(tmp_path / "one.h5", data.read(path, options=options))
    (stored,) = data.read(tmp_path / "one.h5", options=options)
    assert stored.labels.energy == -3
    with pytest.raises(ValueError, match="a store keeps the labels that were chosen"):
        data.read(tmp_path / "one.h5", options=ReadOptions(energy_key="energy"))


HARTREE, BOHR = ase.units.Hartree, ase.units.Bohr
UNITS = {
    "hartree": ("energy-unit=hartree force-unit=Hartree/Bohr", HARTREE, HARTREE / BOHR),
    "Ha": ("energy_unit=Ha forces_unit=Ha/bohr", HARTREE, HARTREE / BOHR),
    "rydberg": ("energy-units=Ry force-units=Ry/a0", HARTREE / 2, HARTREE / 2 / BOHR),
    "kcal": ("energy-unit=kcal/mol force-unit=kcal/mol/Angstrom", 0.0433641, 0.0433641),
    "forces alone": ("force-unit=hartree/bohr", 1, HARTREE / BOHR),
    "eV": ('energy-unit=eV force-unit="eV/Å" length-unit=angstrom', 1, 1),
}


@pytest.mark.parametrize("case", list(UNITS))
def test_stated_units_are_converted(tmp_path, case):
    header, energy, forces = UNITS[case]
    (frame,) = data.read(write(tmp_path / "one.xyz", f"energy=-3 {header}"))
    np.testing.assert_allclose(frame.labels.energy, -3 * energy, rtol=1e-6)
    np.testing.assert_allclose(frame.labels.forces, FORCES * forces, rtol=1e-6)
    assert not [key for key in frame.info if "unit" in key]  # else it would be converted again


@pytest.mark.parametrize(("unit", "factor"), [("GPa", ase.units.GPa), ("kbar", ase.units.GPa / 10), ("eV/A^3", 1.0)])
@pytest.mark.parametrize("key", ["stress-unit", "pressure_unit", "PressureUnits"])
def test_stated_units_of_stress(tmp_path, key, unit, factor):
    (frame,) = data.read(write(tmp_path / "one.xyz", f'stress="{nine(STRESS)}" {key}={unit}'))
    np.testing.assert_allclose(frame.labels.virial, factor * VIRIAL)


@pytest.mark.parametrize(
    "header",
    ["energy-unit=furlong", "energy-unit=hartree", "force-unit=N", "units=real", "unit=hartree", "length-unit=bohr"],
)
def test_units_that_are_not_known_are_refused(tmp_path, header):
    with pytest.raises(ValueError, match="frame 0: .*(unit|Å).*(Convert|convert)"):
        data.read(write(tmp_path / "one.xyz", f"energy=-3 {header}"))


KEYS = {
    "stress_GPa": ("stress", "virial", STRESS / ase.units.GPa, VIRIAL),
    "stress-kbar": ("stress", "virial", STRESS / ase.units.GPa * 10, VIRIAL),
    "dft_stress_eV_A3": ("stress", "virial", STRESS, VIRIAL),
    "virial_Ha": ("virial", "virial", VIRIAL / HARTREE, VIRIAL),
    "energy_per_atom": ("energy", "energy", -0.75, -3.0),
    "energyPerAtom": ("energy", "energy", -0.75, -3.0),
    "energy_eV_per_atom": ("energy", "energy", -0.75, -3.0),
    "formation_energy_meV": ("energy", "energy", -3000.0, -3.0),
    "energy_pbe": ("energy", "energy", -3.0, -3.0),
    "energyHa": ("energy", "energy", -3.0 / HARTREE, -3.0),
    "totalEnergy-mRy": ("energy", "energy", -6000.0 / HARTREE, -3.0),
    "energy_kcal_per_mol": ("energy", "energy", -3.0 / (ase.units.kcal / ase.units.mol), -3.0),
    "stresses_of_it_kbar": ("stress", "virial", STRESS / ase.units.GPa * 10, VIRIAL),
    "energy_eV_of_cell": ("energy", "energy", -3.0, -3.0),
}


@pytest.mark.parametrize("key", list(KEYS))
def test_a_chosen_key_that_states_its_unit_is_converted(tmp_path, key):
    """The warning of what is not taken advises to choose it: its numbers must then be what its name says."""
    quantity, name, given, expected = KEYS[key]
    file = write(tmp_path / "one.xyz", f'{key}="{nine(given)}" force-unit=eV/A')
    (frame,) = data.read(file, options=ReadOptions(**{f"{quantity}_key": key}))
    np.testing.assert_allclose(getattr(frame.labels, name), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "key",
    [
        "energy_MeV",
        "energyMeV",
        "ENERGY_MEV",
        "energy_kcal",
        "energy_GPa",
        "energy_cm-1",
        "virial_Ha_bohr",
        "stress_hartree",
    ],
)
def test_a_chosen_key_of_a_unit_that_is_not_known_is_refused(tmp_path, key):
    """Its numbers are no eV."""
    name = labels.kind_of(key.replace("energyM", "energy_M"))
    file = write(tmp_path / "one.xyz", f'{key}="{nine(VIRIAL if name != "energy" else -3.0)}" force-unit=eV/A')
    with pytest.raises(
        ValueError, match=f"{key}: by its name the {name} is in a unit with .* Convert it to eV.*Known are"
    ):
        data.read(file, options=ReadOptions(**{f"{name}_key": key}))


def test_an_energy_in_another_unit_by_its_key_needs_a_unit_of_the_forces(tmp_path):
    with pytest.raises(ValueError, match="no unit of the forces is"):
        data.read(write(tmp_path / "one.xyz", "energy_hartree=-3"), options=ReadOptions(energy_key="energy_hartree"))


def test_forces_or_virials_per_atom_are_refused(tmp_path):
    with pytest.raises(ValueError, match="virial_per_atom is called a value per atom"):
        file = write(tmp_path / "one.xyz", f'virial_per_atom="{nine(VIRIAL)}"')
        data.read(file, options=ReadOptions(virial_key="virial_per_atom"))


@pytest.mark.parametrize("key", ["stress", "virial", "REF_stress"])
def test_no_part_of_a_tensor_that_is_not_symmetric_is_dropped(tmp_path, key):
    """Rounding is averaged away or kept; of others all nine numbers stay, and `data check` names the frame."""
    noise = np.array([[0, 1e-5, 0], [0, 0, -1e-5], [1e-5, 0, 0]])
    skew = np.array([[0.01, 0.02, 0], [0, 0.01, 0], [0, 0, 0.01]])
    for tensor, atol in ((STRESS + noise, 1e-3), (skew, 1e-9)):
        (frame,) = data.read(write(tmp_path / "one.xyz", f'{key}="{nine(tensor)}"'))
        expected = tensor if key == "virial" else -volume() * tensor
        result = np.asarray(frame.labels.virial)
        assert min(np.abs(result - turned).max() for turned in (expected, expected.T)) < atol
    assert "symmetric" in str(data.audit({"one": [frame]}))


def test_the_unit_of_a_pressure_is_that_of_a_stress_of_which_nothing_is_said(tmp_path):
    both = f'pressure=5 pressure_unit=GPa stress="{nine(STRESS)}" stress_unit=eV/A^3'
    (frame,) = data.read(write(tmp_path / "one.xyz", both))
    np.testing.assert_allclose(frame.labels.virial, VIRIAL, atol=1e-6)
    (frame,) = data.read(write(tmp_path / "two.xyz", "energy=-3 pressure=5 pressure_unit=GPa"))
    assert frame.labels.energy == -3
    with pytest.raises(ValueError, match="pressure_unit=psi: this unit is not known"):
        data.read(write(tmp_path / "three.xyz", f'stress="{nine(STRESS)}" pressure_unit=psi'))


def test_units_of_what_is_no_label_do_not_matter(tmp_path):
    (frame,) = data.read(write(tmp_path / "one.xyz", "energy=-3 time_unit=fs charge-unit=e"))
    assert frame.labels.energy == -3


@pytest.mark.parametrize(("sign", "named"), [(1, False), (-1, True)])
def test_a_stress_that_contradicts_the_virial_is_named(tmp_path, sign, named):
    path = write(tmp_path / "one.xyz", f'energy=-3 virial="{nine(VIRIAL)}" stress="{nine(sign * STRESS)}"')
    remarks: list = []
    (frame,) = data.iterate(path, on_remark=remarks.append)
    np.testing.assert_allclose(frame.labels.virial, VIRIAL)
    assert [remark.what.partition(" ")[0] for remark in remarks] == ["stress"] * named


@pytest.mark.parametrize("comment", ["energy minimised", "energy forces", "Energy virial=T"])
def test_a_word_without_a_value_is_no_label(tmp_path, comment):
    (frame,) = data.read(write(tmp_path / "one.xyz", comment))
    np.testing.assert_array_equal(frame.labels.weights, [0, 1, 0])
    with pytest.raises(ValueError, match=r"energy label .* is not a number: (np.)?True"):
        data.read(tmp_path / "one.xyz", options=ReadOptions(energy_key="energy"))


def test_an_energy_in_the_text_of_a_comment_is_named(tmp_path):
    """xtb writes it so, in hartree."""
    (tmp_path / "xtb.xyz").write_text("1\n energy: -5.070544 gnorm: 0.000057 xtb: 6.6.1\nH 0 0 0\n")
    with pytest.warns(UserWarning, match="energy that is not read: 'energy: -5.070544'.*energy=NUMBER, in eV"):
        (frame,) = data.read(tmp_path / "xtb.xyz")
    assert not frame.labels.weights.any()


@pytest.mark.parametrize(
    ("key", "column", "remedy"),
    [
        ("gap_energy", "gap_force", "--forces-key gap_force"),
        ("e_total", "F", "--forces-key F"),
        ("U0", "frc", "--forces-key frc"),
        ("E_dft", "dft_gradient", "forces are minus the gradient"),
    ],
)
def test_the_remedy_fits_what_the_key_speaks_of(tmp_path, key, column, remedy):
    path = write(tmp_path / "one.xyz", f"{key}=-3", forces=column)
    remarks: list = []
    list(data.iterate(path, on_remark=remarks.append))
    texts = {remark.what.partition(" ")[0]: remark.remedy for remark in remarks}
    assert f"--energy-key {key} " in texts[key] and remedy in texts[column]


def test_values_of_single_atoms_are_no_label_of_the_frame(tmp_path):
    """GAP's local_energy beside the energy is no label and no fault; an energy of atoms alone is named."""
    for header, n in (("energy=-3", 0), ("", 1)):
        (tmp_path / "one.xyz").write_text(f"1\nProperties=species:S:1:pos:R:3:local_energy:R:1 {header}\nH 0 0 0 -3\n")
        remarks: list = []
        (frame,) = data.iterate(tmp_path / "one.xyz", on_remark=remarks.append)
        assert len(remarks) == n and all("those of the frame" in remark.remedy for remark in remarks)
        assert frame.labels.weights[0] == 1 - n


def test_units_in_one_word_are_read_and_mega_is_not_milli(tmp_path):
    (frame,) = data.read(write(tmp_path / "one.xyz", "energy=-3 energyunit=meV forceunits=eV/Ang"))
    np.testing.assert_allclose(frame.labels.energy, -3e-3)
    for unit in ("MeV", "MEV"):
        with pytest.raises(ValueError, match=f"energy_unit={unit}: this unit is not known"):
            data.read(write(tmp_path / "two.xyz", f"energy=-3 energy_unit={unit} force_unit=eV/Ang"))
