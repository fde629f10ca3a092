"""`lamjax eval` against stored DeePMD numbers, labels, and its own files."""

import functools
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from typer.testing import CliRunner

import lamjax
from lamjax.cli import app
from lamjax.data import Frame, from_atoms, read
from lamjax.evaluation import parity
from lamjax.potential import Prediction

MODEL = Path(__file__).parents[1] / "fixtures" / "option_matrix" / "m02_preset_like"
NAMES = ("cu1", "molecule", "triclinic")
PARTS = ("energy", "atom_energy", "forces", "virial")


def run(*arguments):
    """The command in this process; (exit code, output, exception)."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "120"})
    return result.exit_code, result.output, result.exception


def rows(output: str) -> dict[str, list[str]]:
    """The lines of the tables by their first cell."""
    cells = [[c.strip() for c in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]
    return {first: rest for first, *rest in cells}


@functools.cache
def stored() -> dict[str, np.ndarray]:
    with np.load(MODEL / "reference.npz") as file:
        return {key: file[key] for key in file.files}


def structure(name: str) -> ase.Atoms:
    pbc = bool(np.all(stored()[f"{name}__pbc"]))
    cell = stored()[f"{name}__cell"] if pbc else None
    return ase.Atoms(list(stored()[f"{name}__species"]), stored()[f"{name}__positions"], cell=cell, pbc=pbc)


def exact_extxyz(atoms: ase.Atoms) -> str:
    """extxyz with every digit; ASE writes eight decimals of the positions, whatever it is asked."""
    flags = " ".join("T" if p else "F" for p in atoms.pbc)
    lattice = f'Lattice="{" ".join(map(repr, atoms.cell.array.ravel().tolist()))}" ' if atoms.pbc.any() else ""
    lines = [f"{s} {x!r} {y!r} {z!r}" for s, (x, y, z) in zip(atoms.symbols, atoms.positions.tolist(), strict=True)]
    return "\n".join([str(len(atoms)), f'{lattice}Properties=species:S:1:pos:R:3 pbc="{flags}"', *lines, ""])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """frames.extxyz and DeePMD's numbers for them, reference.npz."""
    folder = tmp_path_factory.mktemp("eval")
    (folder / "frames.extxyz").write_text("".join(exact_extxyz(structure(name)) for name in NAMES))
    numbers = {f"{name}__{part}": stored()[f"{name}__{part}"] for name in NAMES for part in PARTS}
    np.savez(folder / "reference.npz", frames=np.array(NAMES), **numbers)
    return folder


def evaluate(folder, *options, frames="frames.extxyz"):
    return run("eval", MODEL / "model.dp", folder / frames, "--max-programs", 1, "--precision", "float64", *options)


@pytest.fixture(scope="module")
def predicted(folder):
    """The npz file that --out writes, and what was printed."""
    code, output, _ = evaluate(folder, "--reference", folder / "reference.npz", "--out", folder / "predicted.npz")
    assert code == 0, output
    return folder / "predicted.npz", output


def test_deepmd_numbers_are_met_and_the_table_says_how_well(predicted):
    table = rows(predicted[1])
    units = {"energy": "eV", "energy per atom": "eV/atom", "forces": "eV/Å", "virial": "eV", "atomic energies": "eV"}
    for quantity, unit in units.items():
        text, n, largest, rms, relative = table[quantity]
        assert text == unit and n == "3"
        assert 0 <= float(rms) <= float(largest) < 1e-9 and float(relative) < 1e-9
    assert any(float(table[q][2]) > 0 for q in units)
    assert "model.dp (float64): 3 frames against reference.npz" in predicted[1]
    assert "float32 numbers" not in predicted[1]  # this model is stored in float64


def test_predictions_are_written_as_documented(predicted):
    with np.load(predicted[0], allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    sizes = [len(stored()[f"{name}__species"]) for name in NAMES]
    assert set(arrays) == {"energy", "forces", "virial", "atomic_energies", "n_atoms", "sources"}
    assert arrays["n_atoms"].tolist() == sizes and arrays["sources"][1] == "frames.extxyz frame 1"
    assert arrays["virial"].shape == (3, 3, 3) and arrays["energy"].dtype == np.float64
    for part, name in (("energy", "energy"), ("forces", "forces"), ("atomic_energies", "atom_energy")):
        expected = np.concatenate([np.atleast_1d(stored()[f"{frame}__{name}"]) for frame in NAMES])
        np.testing.assert_allclose(arrays[part], expected, rtol=0, atol=1e-9)


def test_written_predictions_are_a_reference(folder, predicted):
    code, output, _ = evaluate(folder, "--reference", predicted[0])
    assert code == 0, output
    assert {q: float(rows(output)[q][2]) for q in ("energy", "forces", "virial", "atomic energies")} == {
        "energy": 0, "forces": 0, "virial": 0, "atomic energies": 0
    }  # fmt: skip


def test_a_perturbed_reference_is_found_with_frame_and_atom(folder, predicted):
    with np.load(predicted[0]) as file:
        arrays = {name: file[name] for name in file.files}
    n = arrays["n_atoms"]
    arrays["forces"][n[0] + n[1] + 4, 2] += 0.25  # atom 4 of the last frame
    arrays["atomic_energies"][n[0] + 7] -= 0.5
    arrays["energy"][1] += 2.0
    del arrays["virial"]
    np.savez(folder / "perturbed.npz", **arrays)
    code, output, _ = evaluate(folder, "--reference", folder / "perturbed.npz")
    assert code == 0, output
    table, symbols = rows(output), [structure(name).symbols for name in NAMES]
    assert table["forces"][:3] == ["eV/Å", "3", "0.25"] and table["energy"][2] == "2"
    assert float(table["energy per atom"][2]) == pytest.approx(2 / n[1], rel=1e-3)
    assert float(table["forces"][3]) == pytest.approx(0.25 / (3 * n.sum()) ** 0.5, rel=1e-3)
    assert f"largest in forces: frames.extxyz frame 2, atom 4 ({symbols[2][4]})" in output
    assert f"largest in atomic energies: frames.extxyz frame 1, atom 7 ({symbols[1][7]})" in output
    assert "largest in energy: frames.extxyz frame 1\n" in output
    assert "virial" not in table and "not compared: virial" in output


def test_labelled_structures_are_a_reference_too(folder, predicted):
    with np.load(predicted[0]) as file:
        energy, forces = file["energy"], np.split(file["forces"], np.cumsum(file["n_atoms"])[:-1])
    labelled = []
    for k, name in enumerate(NAMES):
        atoms = structure(name)
        atoms.calc = SinglePointCalculator(atoms, energy=energy[k] + 0.5 * (k == 1), forces=forces[k])
        labelled.append(atoms)
    ase.io.write(folder / "labelled.traj", labelled)
    code, output, _ = evaluate(folder, "--reference", folder / "labelled.traj")
    assert code == 0 and rows(output)["energy"][2] == "0.5" and rows(output)["forces"][2] == "0"
    assert "not compared: virial, atomic energies" in output


def test_extxyz_output_has_the_energies_of_the_atoms(folder, predicted):
    out = folder / "predicted.extxyz"
    code, output, _ = evaluate(folder, "--out", out)
    assert code == 0 and "No frame carries a label: nothing was compared" in output
    with np.load(predicted[0]) as file:
        first, energies = file["n_atoms"][0], file["atomic_energies"]
    atoms = ase.io.read(out, ":")
    np.testing.assert_allclose(np.concatenate([a.get_potential_energies() for a in atoms]), energies, atol=1e-8)
    assert len(atoms[0]) == first


def test_frames_without_any_label_are_refused_where_only_errors_are_wanted(folder):
    """Before anything is computed, with what the frames carry and what to do."""
    (folder / "unnamed.extxyz").write_text((folder / "frames.extxyz").read_text().replace("pbc=", "my_e=-1.5 pbc="))
    code, _, error = evaluate(folder, frames="unnamed.extxyz")
    assert code != 0 and isinstance(error, ValueError)
    for message in ("No frame carries a label", "unnamed.extxyz frame 0", "carries my_e", "--energy-key", "--output"):
        assert message in str(error)
    code, output, _ = evaluate(folder, "--energy-key", "my_e", frames="unnamed.extxyz")
    assert code == 0 and "No frame carries a label of forces, virial: not compared" in output


def test_a_model_of_float32_numbers_is_said_to_be_one(folder, predicted):
    lamjax.save(folder / "small.lamjax", *lamjax.load(MODEL / "model.dp", dtype=np.float32))
    command = ("eval", folder / "small.lamjax", folder / "frames.extxyz", "--reference", predicted[0])
    code, output, _ = run(*command, "--max-programs", 1, "--precision", "float64")
    assert code == 0 and "small.lamjax (float64): 3 frames against predicted.npz" in output
    assert "The file's parameters are float32 numbers" in output
    assert 1e-8 < float(rows(output)["forces"][2]) < 1e-4  # and this is what it does


# the reference file alone, without a model --------------------------------------------------------------------------


def frames(sizes=(2, 2)) -> list[Frame]:
    return [
        from_atoms(ase.Atoms(["H", "O", "Cu"][:n], np.eye(3)[:n] * 2), source=f"x frame {k}")
        for k, n in enumerate(sizes)
    ]


def predictions(sizes, seed: int = 0) -> list[Prediction]:
    rng = np.random.default_rng(seed)
    return [
        Prediction(rng.normal(), rng.normal(size=(n, 3)), rng.normal(size=(3, 3)), rng.normal(size=n)) for n in sizes
    ]


@pytest.mark.parametrize("layout", ["rows", "stacked", "flat", "names"])
def test_layouts_of_a_reference_are_one(tmp_path, layout):
    result = predictions((2, 2))
    energy, forces, virial, atomic = (np.stack([getattr(p, name) for p in result]) for name in Prediction._fields)
    arrays = {
        "rows": {"energy": energy, "forces": forces.reshape(4, 3), "virial": virial, "atomic_energies": atomic.ravel()},
        "stacked": {"energy": energy[:, None], "force": forces, "virial": virial, "atom_energy": atomic},
        "flat": {"energy": energy, "forces": forces.reshape(2, 6), "virial": virial.reshape(2, 9)},
        "names": {"frames": np.array(["b", "a"]), "b__energy": energy[0], "a__energy": energy[1],
                  "b__forces": forces[0], "a__forces": forces[1]},
    }[layout]  # fmt: skip
    np.savez(tmp_path / "reference.npz", **arrays)
    reference = parity.read_reference(tmp_path / "reference.npz", frames())
    table = parity.parity_table(frames(), result, reference)
    assert [row.quantity for row in table][:3] == ["energy", "energy per atom", "forces"]
    assert all(row.largest == row.rms == row.relative == 0 and row.n == 2 for row in table)
    lacking = {"rows": [], "stacked": [], "flat": ["atomic energies"], "names": ["virial", "atomic energies"]}
    assert parity.missing(reference) == lacking[layout]


def test_relative_differences_leave_out_frames_where_nothing_acts():
    zero = Prediction(0.0, np.zeros((2, 3)), np.zeros((3, 3)), np.zeros(2))
    one = Prediction(2.0, np.full((2, 3), 4.0), np.eye(3), np.ones(2))
    off = one._replace(forces=one.forces + [[0, 0, 0], [0, 0.5, 0]])
    table = {row.quantity: row for row in parity.parity_table(frames(), [zero, off], [zero, one])}
    assert table["forces"].largest == 0.5 and table["forces"].relative == 0.125
    assert table["forces"].where == "x frame 1, atom 1 (O)"
    alone = parity.parity_table(frames((2,)), [zero], [zero])
    assert all(row.relative is None and row.largest == 0 for row in alone)


def test_a_prediction_that_is_no_number_is_the_largest_difference():
    good = predictions((2, 2))
    bad = good[1]._replace(forces=np.array([[0, 0, 0], [0, np.nan, 0.0]]))
    row = {r.quantity: r for r in parity.parity_table(frames(), [good[0], bad], good)}["forces"]
    assert np.isnan(row.largest) and row.where == "x frame 1, atom 1 (O)"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"energy": np.zeros(3)},
            r"energy has shape \(3,\), expected \(2,\): the structures are 2 frames with 5 atoms",
        ),
        ({"forces": np.zeros((6, 3))}, r"forces has shape \(6, 3\), expected \(5, 3\)"),
        ({"forces": np.zeros((3, 5))}, r"forces has shape \(3, 5\), expected \(5, 3\)"),
        ({"atomic_energies": np.zeros(4)}, r"atomic_energies has shape \(4,\), expected \(5,\)"),
        ({"energy": np.zeros(2), "n_atoms": np.array([3, 2])}, "frame 0 of the reference has 3 atoms, .* structures 2"),
        ({"energy": np.zeros(2), "n_atoms": np.array([5])}, "holds 1 frames, the structures are 2"),
        ({"frames": np.array(["a"]), "a__energy": np.zeros(())}, "holds 1 frames, the structures are 2"),
        ({"frames": np.array(["a", "b"]), "a__forces": np.zeros((3, 3))}, r"a__forces has shape \(3, 3\), .*\(2, 3\)"),
        ({"coord": np.zeros(2), "box": np.zeros(9)}, "none of energy, forces, .*It holds: coord, box"),
        ({"energy": np.array(["a", "b"])}, "energy holds <U1, not numbers"),
        ({"energy": np.array([None, "b"], object)}, "not an npz file of plain arrays"),
    ],
)
def test_references_that_do_not_fit_say_why(tmp_path, arrays, message):
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(ValueError, match=f"wrong.npz.*{message}"):
        parity.read_reference(tmp_path / "wrong.npz", frames((2, 3)))


def test_files_that_are_no_reference_say_why(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.npz: no such file"):
        parity.read_reference(tmp_path / "nowhere.npz", frames())
    np.savez(tmp_path / "whole.npz", energy=np.zeros(2))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-30])
    with pytest.raises(ValueError, match="cut.npz: not an npz file"):
        parity.read_reference(tmp_path / "cut.npz", frames())
    (tmp_path / "plain.extxyz").write_text(exact_extxyz(ase.Atoms("HO", np.eye(3)[:2])) * 3)
    with pytest.raises(ValueError, match="plain.extxyz: the reference holds 3 frames, the structures are 2"):
        parity.read_reference(tmp_path / "plain.extxyz", frames())
    with pytest.raises(ValueError, match="no frame carries an energy"):
        parity.read_reference(tmp_path / "plain.extxyz", read(tmp_path / "plain.extxyz"))


def test_wrong_options_are_refused(folder):
    for options, message in ((("--precision", "half"), "float32 or float64"), (("--out", "x.csv"), "must end in .npz")):
        _, _, error = run("eval", MODEL / "model.dp", folder / "frames.extxyz", *options)
        assert isinstance(error, ValueError) and message in str(error)
