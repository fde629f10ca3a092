"""`lamjax report`: pages of folders and files as runs leave them, complete or not, and what happens when one fails."""

import csv
import json
from pathlib import Path

import ase
import ase.build
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from invoke import invoke
from pages import read_page

from lamjax import dynamics
from lamjax.cli import final_report, relax_records, report, report_structures
from lamjax.data.records import append
from lamjax.evaluation.structures import COLUMNS, StructureSummary
from lamjax.reports import plots
from lamjax.system import from_ase
from lamjax.training.config import TrainConfig, to_json, validate
from lamjax.training.properties_config import PropertyTuneConfig
from lamjax.training.structures_config import StructureTuneConfig

OUTCOME = {"converged": True, "finite": True, "n_steps": 12, "fmax": 0.01, "truncated": False}


def write_table(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def crystals() -> list[ase.Atoms]:
    """A cubic crystal with atoms on faces of its cell, a molecule, a slab; an atom lies in another image."""
    silicon = ase.build.bulk("Si", cubic=True)
    silicon.positions[1] += silicon.cell[0] - silicon.cell[2]
    slab = ase.build.fcc111("Al", (1, 1, 2), vacuum=4)
    slab.info = {}
    return [silicon, ase.build.molecule("CH3OH"), slab]


def relaxed(path: Path, starts: list[ase.Atoms], way: float = 0.25) -> None:
    """A file as `lamjax relax` writes it: the second atom of each has moved along x, the cell has grown."""
    with open(path, "w") as file:
        for k, start in enumerate(starts):
            end = ase.Atoms(start.symbols, start.positions, cell=1.02 * start.cell[:], pbc=start.pbc)
            end.positions[1, 0] += (k + 1) * way
            end.calc = SinglePointCalculator(end, energy=-1.5 - k, forces=np.full((len(end), 3), 0.001 * k))
            moved = {"moved": (k + 1) * way, "volume_change": 0.0612}
            made = {"relaxed_to": "fmax 0.02; max_steps 500", "relaxed_by": "chgnet abc"}
            end.info = {"source": f"starts.extxyz#{k}", "number": k} | OUTCOME | moved | made
            append(file, end)
        failed = {"source": "starts.extxyz#3", "number": 3}
        append(file, relax_records.unrelaxed(starts[0].copy(), failed, "<b>two atoms coincide</b>"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    starts = crystals()
    ase.io.write("starts.extxyz", starts)
    relaxed(Path("out.extxyz"), starts)
    return starts


def test_a_relaxation_shows_starts_beside_ends_and_all_numbers(place):
    code, output, _ = invoke("report", "out.extxyz")
    assert code == 0 and output.strip() == "out.html"
    page = read_page(Path("out.html"))
    assert "4 structures, 3 converged, 1 could not be relaxed" in page.text
    for text in ("fmax 0.02; max_steps 500", "chgnet abc", "<b>two atoms coincide</b>", "6.12", "ase gui out.extxyz"):
        assert text in page.text
    shown = page.structures["pairs"]
    assert [pair[0]["label"] for pair in shown] == ["start"] * 3
    assert shown[0][0]["symbols"] == ["Al"] * 5  # it moved farthest; a corner of the slab is drawn four times
    assert [pair[1]["label"] for pair in shown] == ["relaxed, 12 steps"] * 3
    assert shown[1][0]["cell"] is None and len(shown[1][0]["symbols"]) == 6  # a molecule
    start, end = (np.array(view["positions"]) for view in shown[1])
    np.testing.assert_allclose(end - start, np.eye(6, 3, -1) * [0.5, 0, 0], atol=2e-3)  # the second atom, along x


def test_atoms_are_drawn_in_the_cell_and_keep_their_image(place):
    start = place[0]
    end = start.copy()
    end.positions[1, 0] -= 0.3
    first, last = report_structures.side_by_side([("start", start), ("end", end)])
    x, y = np.array(first.positions), np.array(last.positions)
    fractions = start.cell.scaled_positions(x)
    assert (fractions > -0.1).all() and (fractions < 1.1).all()
    moved = np.flatnonzero(np.abs(x - y).max(axis=1) > 1e-6)
    np.testing.assert_allclose((y - x)[moved], [[-0.3, 0, 0]] * len(moved), atol=2e-3)
    # the eight atoms, and those on faces once more: a corner has 7 more images, the middle of a face one
    assert first.symbols == ["Si"] * 18 and len(np.unique(x.round(2), axis=0)) == 18
    assert report_structures.side_by_side([("a", start), ("b", place[1])]) == []
    assert report_structures.side_by_side([("a", start.repeat((7, 7, 7)))]) == []  # 2744 atoms


def test_starts_that_are_gone_leave_the_ends(place):
    Path("starts.extxyz").unlink()
    report.write(Path("out.extxyz"))
    assert [[view["label"] for view in pair] for pair in read_page(Path("out.html")).structures["pairs"]] == [
        ["relaxed, 12 steps"]
    ] * 3


def test_what_programs_open_is_what_was_relaxed(place, tmp_path):
    for k, atoms in enumerate(ase.io.read("out.extxyz", ":3")):
        assert (atoms.pbc == place[k].pbc).all() and atoms.get_potential_energy() == -1.5 - k
        np.testing.assert_allclose(atoms.get_forces(), 0.001 * k, atol=1e-9)
    atoms = ase.io.read("out.extxyz", 0)
    ase.io.write("out.cif", atoms)  # for VESTA
    again = ase.io.read("out.cif")
    np.testing.assert_allclose(again.cell.cellpar(), atoms.cell.cellpar(), atol=1e-4)
    away = again.get_scaled_positions() - atoms.get_scaled_positions()
    np.testing.assert_allclose(away - np.round(away), 0, atol=1e-5)


def simulated(path: Path, atoms: ase.Atoms, n: int) -> list[np.ndarray]:
    """A trajectory with its table; the positions of its frames."""
    shape = (n, len(atoms), 3)
    positions = atoms.positions + np.random.default_rng(0).normal(size=shape, scale=0.1)
    one, zero = np.linspace(1, 2, n), np.zeros(shape)
    cells = np.broadcast_to(np.asarray(atoms.cell), (n, 3, 3))
    numbers = (np.arange(n) * 10, one, one, 300 * one, np.zeros((n, 6)), one, one, positions, zero, cells, zero)
    seen = dynamics.Record(*numbers, truncated=np.zeros(n, bool))
    scene = dynamics.Scene(from_ase(atoms, np.float64), np.zeros(shape[1:], bool), 2.0)
    dynamics.trajectory.writer(path, scene).append(seen)
    table = dynamics.records.header() + dynamics.records.rows(seen, 2.0)
    dynamics.paths(path).table.write_text(table)
    return list(positions)


@pytest.mark.parametrize("suffix", [".extxyz", ".traj", ".h5"])
@pytest.mark.parametrize("n", [1, 70])
def test_a_simulation_shows_its_first_and_last_frame(tmp_path, suffix, n, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(f"run{suffix}")
    atoms = ase.build.molecule("C6H6")
    positions = simulated(path, atoms, n)
    assert invoke("report", path)[0] == 0
    page = read_page(Path("run.html"))
    for view, expected in zip(page.structures["pairs"][0], (positions[0], positions[-1]), strict=True):
        np.testing.assert_allclose(view["positions"], expected, atol=1e-3)
    assert ("temperature (K)" in page.figures) == (n > 1) and "C6H6" in page.text


def test_the_last_frame_is_found_whatever_is_cut_off(tmp_path):
    path = tmp_path / "run.extxyz"
    positions = simulated(path, ase.build.molecule("H2O"), 5)
    whole = path.read_bytes()
    for cut, last in ((0, 4), (1, 3), (30, 3), (len(whole) * 3 // 10, 2)):
        path.write_bytes(whole[: len(whole) - cut])
        np.testing.assert_allclose(report_structures.ends(path)[1].positions, positions[last], atol=1e-6)


def label_run(folder: Path) -> None:
    """What a training on two tasks has left when it was killed after its second validation."""
    folder.mkdir()
    tasks = {"water": {"train": "w.xyz"}, "ice": {"train": "i.xyz"}}
    config = validate({"base": "small", "tasks": tasks, "steps": 40})
    (folder / "config.json").write_text(to_json(config))
    n_frames = {"water": {"train": 7, "validation": 2}, "ice": {"train": 3, "validation": 1}}
    facts = {"versions": {"lamjax": "9.8.7", "jax": "6.5"}, "devices": ["cpu cpu"], "data": n_frames}
    (folder / "facts.json").write_text(json.dumps(facts))
    rows = [
        {"step": step, "lr": 1e-3, "loss": 1 / step}
        | {f"rmse_f_{of}:{task}": x / step for of in ("train", "validation") for task, x in (("water", 1), ("ice", 2))}
        for step in (10, 20)
    ]
    write_table(folder / "lcurve.csv", rows)
    plots.parity(folder / "parity_water.png", {"energy": ([0.0, 1.0], [0.1, 0.9])}, "")
    line = {"head": "old", "labelled": False, "n": 5, "energy_before": None, "energy_after": 3.25}
    (folder / "forgetting.json").write_text(json.dumps([line | {"forces_before": None, "forces_after": 4.5}]))


def test_a_training_tells_config_data_curves_parity_forgetting_and_versions(tmp_path):
    label_run(tmp_path / "run")
    code, output, _ = invoke("report", tmp_path / "run", COLUMNS="400")
    assert code == 0 and output.strip() == str(tmp_path / "run" / "report.html")
    page = read_page(tmp_path / "run" / "report.html")
    assert page.headings == [
        "Result", "Curves", "Parity", "What it cost elsewhere (forgetting)", "Data", "Config", "Versions"
    ]  # fmt: skip
    assert "Step 20 of 40." in page.text and "9.8.7" in page.text and "cpu cpu" in page.text
    assert ["ice force RMSE (meV/Å)", "200", "100", "100", "20"] in page.rows  # first, least, last, at step
    assert ["old *", "5", "-", "3.25", "-", "4.5"] in page.rows and [
        "water: found",
        "7 train, 2 validation",
    ] in page.rows
    assert ["schedule.type", "exp"] in page.rows and len(page.images) == 1
    assert len(page.figures) == 3  # loss, and forces of two tasks


def structure_run(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(to_json(StructureTuneConfig(base="small", pairs=("p.xyz",), epochs=3)))
    write_table(
        folder / "history.csv", [{"step": k, "epoch": 1, "lr": 1, "loss": 2.0 / k, "grad_norm": 1} for k in (1, 2)]
    )
    zeros = dict.fromkeys(StructureSummary._fields, 0.5)
    write_table(folder / "validation.csv", [{"step": k, "epoch": k} | zeros | {"dq_median": 3.0 - k} for k in (0, 2)])
    names = [f"{name}_{when}" for name in COLUMNS for when in ("before", "after")]
    worse = {"structure": "Si <8>", "n_atoms": 8} | dict.fromkeys(names, 1.25) | {"dq_after": 7.5}
    write_table(folder / "structures.csv", [worse | {"structure": "other", "dq_after": 0.5}, worse])


def test_a_fine_tuning_on_structures_tells_errors_before_and_after(tmp_path):
    structure_run(tmp_path / "run")
    report.write(tmp_path / "run")
    page = read_page(tmp_path / "run" / "report.html")
    assert {"Result", "Curves", "Structures before and after", "Config"} <= set(page.headings)
    assert ["median Dq (amu^½ Å)", "3", "1", "1"] in page.rows and "epoch 1 of 3" in page.text
    names = [row[0] for row in page.rows]
    assert names.index("Si <8>") < names.index("other")  # the worst first
    assert {"loss against training steps", "median RMSD (Å) against training steps"} <= set(page.figures)


def property_run(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(to_json(PropertyTuneConfig(base="small", crystals=("c.xyz",), epochs=3)))
    measured = {"score": 1.0, "error_median": 1.0, "volume_mae": 0.3, "improved": 0.5, "converged": 1, "n_steps": 9}
    write_table(folder / "validation.csv", [{"step": k, "epoch": k} | measured | {"score": 3 - k} for k in (0, 2)])
    good = {"structure": "Si <8>", "n_atoms": 8, "volume_target": 40.5, "bulk_modulus_target": ""}
    good |= {"error_before": 2.0, "error_after": 0.5, "volume_before": 41.0, "volume_after": 40.75}
    good |= {"converged_before": True, "converged_after": True}
    failed = good | {"structure": "worst", "error_after": "inf", "volume_after": "nan", "converged_after": False}
    write_table(folder / "properties.csv", [good, good | {"structure": "other", "error_after": "nan"}, failed])


def test_a_fine_tuning_on_properties_tells_errors_before_and_after(tmp_path):
    property_run(tmp_path / "run")
    report.write(tmp_path / "run")
    page = read_page(tmp_path / "run" / "report.html")
    assert "Fine-tuning on properties: run" in page.text
    assert {"Result", "Curves", "Crystals before and after", "Config"} <= set(page.headings)
    assert ["volume MAE (Å³)", "0.3", "0.3", "0.3"] in page.rows and ["crystals", '["c.xyz"]'] in page.rows
    names = [row[0] for row in page.rows if row[0] in ("worst", "Si <8>", "other")]
    assert names == ["worst", "Si <8>", "other"]  # what is not known comes last
    assert ["worst", "8", "40.5", "2", "inf", "41", "-", "yes", "no"] in page.rows
    assert "volume MAE (Å³) against training steps" in page.figures


@pytest.mark.parametrize("kind", [label_run, structure_run, property_run])
def test_tables_of_other_commands_in_the_folder_of_a_run_do_no_harm(kind, tmp_path):
    kind(tmp_path / "run")
    for name in ("properties.csv", "structures.csv"):
        if not (path := tmp_path / "run" / name).is_file():
            path.write_text("number,name,volume\n0,Si,40.0\n")
    report.write(tmp_path / "run")
    assert "Versions" in read_page(tmp_path / "run" / "report.html").text or kind is not label_run


def test_a_run_without_a_step_has_a_page(tmp_path):
    (tmp_path / "config.json").write_text(to_json(TrainConfig(base="small", train=("a.xyz",))))
    report.write(tmp_path)
    assert "No step is done yet." in read_page(tmp_path / "report.html").text


def test_a_folder_of_outputs_gets_a_page_for_each(place):
    simulated(Path("run.traj"), ase.build.molecule("H2O"), 3)
    code, output, _ = invoke("report", ".")
    assert code == 0 and output.split() == ["out.html", "run.html"]


NO_RUN = {
    "starts.extxyz": "was not written by lamjax",
    "empty": "holds no config.json",
    "none": "no such file or folder",
}


@pytest.mark.parametrize("path, text", NO_RUN.items(), ids=NO_RUN)
def test_what_is_no_run_is_named(place, path, text):
    Path("empty").mkdir()
    code, _, error = invoke("report", path)
    assert code != 0 and path in str(error) and text in str(error) and "lamjax report" in str(error)


def test_a_report_that_fails_is_said_and_loses_nothing(place, monkeypatch, capsys):
    monkeypatch.setattr(plots, "relaxations", lambda *_, **__: 1 / 0)
    before = Path("out.extxyz").read_bytes()
    final_report.at_end(Path("out.extxyz"))
    output = capsys.readouterr().out
    assert "report was not written (ZeroDivisionError" in output and "lamjax report out.extxyz" in output
    assert Path("out.extxyz").read_bytes() == before and not Path("out.html").exists()
