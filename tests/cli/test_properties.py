"""`lamjax properties` as a user types it: its lines, flags, figures, and how it goes on."""

import csv
import json
from pathlib import Path

import ase
import ase.build
import ase.io
import many_body
import numpy as np
import pytest
from invoke import invoke

from lamjax import checkpoints
from lamjax.properties import survey


@pytest.fixture
def silicon(monkeypatch):
    """Any file opens as Stillinger-Weber silicon, whose properties are known."""
    potential = many_body.stillinger_weber()
    monkeypatch.setattr(checkpoints, "load", lambda *args: (potential, potential.init()))


def run(*arguments):
    return invoke("properties", "model", *arguments)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "properties.csv", newline="") as file:
        return list(csv.DictReader(file))


def structures(path: Path) -> Path:
    """Two crystals that become one, one of another lattice, and a molecule: all of two atoms, for few programs."""
    cubic = ase.build.bulk("Si", "diamond", a=5.5)
    cubic.info |= {"bulk_modulus_GPa": 100.0, "shear_modulus_GPa": 50.0}
    sheared = cubic.copy()
    sheared.set_cell(cubic.cell.array @ (np.eye(3) + [[0.02, 0.03, 0], [0.03, 0, 0], [0, 0, -0.03]]), scale_atoms=True)
    centred = ase.Atoms("Si2", scaled_positions=[(0, 0, 0), (0.5, 0.5, 0.5)], cell=[3.2, 3.2, 3.2], pbc=True)
    molecule = ase.Atoms("Si2", positions=[(0, 0, 0), (2.3, 0, 0)])
    ase.io.write(path, [cubic, sheared, centred, molecule])
    return path


def test_properties_of_some_crystals(tmp_path, silicon):
    file, out = structures(tmp_path / "all.extxyz"), tmp_path / "run"
    options = ("--elastic", "--eos", "--phonons", "--supercell", "5")
    code, output, error = run(file, "--output", out, *options)
    assert code == 0, (output, error)
    lines = rows(out)
    assert [line["number"] for line in lines] == ["0", "1", "2", "3"]
    first, second, centred, molecule = lines
    for line in (first, second):
        assert line["converged"] == line["elastic_stable"] == line["phonons_stable"] == "True"
        assert line["broken_up"] == "False" and float(line["fmax"]) <= 1e-4
        assert float(line["bulk_modulus"]) == pytest.approx(101.4, abs=0.1)
        assert float(line["eos_bulk_modulus"]) == pytest.approx(101.4, abs=0.5)
        assert float(line["shear_modulus"]) == pytest.approx(47.9, abs=0.1)
        assert float(line["volume_per_atom"]) == pytest.approx(20.023, abs=0.01)
        assert float(line["density"]) == pytest.approx(2.329, abs=2e-3)
    assert first["symmetry_changed"] == "False" and second["symmetry_changed"] == "True"
    assert first["reference_bulk_modulus"] == "100.0"
    assert centred["operations"] == "48" and centred["phonons_stable"] == str(float(centred["least_frequency"]) > -0.1)
    assert "a molecule" in molecule["elastic_error"] and "a molecule" in molecule["phonons_error"]
    records = json.loads((out / "properties.json").read_text())
    tensor = np.array(records[0]["elastic_tensor"])
    assert tensor.shape == (6, 6) and tensor[3, 3] == pytest.approx(56.4, abs=0.1)
    heat = records[0]["heat_capacity"][0] / 2, records[1]["heat_capacity"][0] / 2  # J/(mol K) of atoms
    assert heat[0] == pytest.approx(19.9, abs=0.6) and heat[1] == pytest.approx(heat[0], rel=0.03)
    assert records[0]["commensurate_share"] < 1 and records[0]["supercell"] == [2, 2, 2]
    assert len(ase.io.read(out / "relaxed.extxyz", ":")) == 4
    for name in ("figures/00000_Si2_phonons.png", "figures/00000_Si2_eos.png", "moduli.png"):
        assert (out / name).stat().st_size > 10_000
    assert "elastic stable" in output and "mean error of the bulk modulus" in output


def test_a_run_goes_on_where_it_stopped(tmp_path, silicon, monkeypatch):
    file, out = structures(tmp_path / "all.extxyz"), tmp_path / "run"
    calls = []
    monkeypatch.setattr(survey, "elastic", lambda *args: calls.append(args) or {"bulk_modulus": 1.0})
    assert run(file, "--output", out, "--elastic", "--max-steps", 40)[0] == 0
    n = len(calls)
    text = (out / "records.jsonl").read_text().splitlines(keepends=True)
    (out / "records.jsonl").write_text(text[0] + text[1][:20])  # killed while it wrote the second line
    code, output, error = run(file, "--output", out, "--elastic", "--max-steps", 40)
    assert code != 0 and "--resume" in str(error)
    code, output, error = run(file, "--output", out, "--elastic", "--max-steps", 41, "--resume")
    assert code != 0 and "max_steps 40, now max_steps 41" in str(error)
    code, output, _ = run(file, "--output", out, "--elastic", "--max-steps", 40, "--resume")
    assert code == 0 and len(rows(out)) == 4 and n < 2 * n - 1 <= len(calls) <= 2 * n
    assert len(ase.io.read(out / "relaxed.extxyz", ":")) == 4


def test_what_cannot_be_is_said(tmp_path, silicon):
    file = structures(tmp_path / "all.extxyz")
    code, output, error = run(file, "--output", tmp_path / "run", "--phonopy")
    assert code != 0 and "add --phonons" in str(error)
    (tmp_path / "empty.extxyz").write_text("")
    code, output, error = run(tmp_path / "empty.extxyz", "--output", tmp_path / "other")
    assert code != 0 and "Nothing was computed" in str(error)
