"""What the experiment on distillation reports: from made-up runs, and the functions that measure."""

import json

import ase
import numpy as np
import pytest

from experiments.distillation import cases, report, run


def made_up(model: run.Model) -> dict:
    """A result in the form of a real one; the seeds differ."""
    r = np.linspace(0.1, 6.0, 120)
    wave = 1 + 0.1 * model.seed * np.sin(r)
    against = {"dft": {"e": 2.0 + model.seed, "f": 100.0}, "teacher": {"e": 1.0, "f": 50.0}}
    if model.way == run.TEACHER:
        del against["teacher"]
    pairs = {name: wave.tolist() for name in ("Mo-Mo", "Mo-Ta", "Ta-Ta")}
    return {
        **model._asdict(),
        "parameters": 1234,
        "errors": against,
        "seconds": 60.0,
        "rdf": {"r": r.tolist(), **pairs},
    }


def test_teacher_and_students_stand_side_by_side(tmp_path):
    models = run.models(["alloy"], [0, 1, 2])
    assert len(models) == 1 + 3 + 3 + 1 and models[0].way == run.TEACHER
    kinds = {run._kind(model) for model in models}
    speed = {kind: {"ms_per_step": 5.0, "kb_per_atom": 20.0} for kind in kinds}
    speed["teacher"]["ms_per_step"] = 40.0
    report.tell([made_up(m) for m in models], {"alloy": {"atoms": 1024, **speed}}, tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    assert len(content["runs"]) == len(models) and content["speed"]["alloy"]["atoms"] == 1024
    table = report.table("alloy", report.by_case(content["runs"])["alloy"], content["speed"]["alloy"])
    (line,) = [line for line in table.splitlines() if line.startswith("| DPA-1 distilled")]
    cells = [cell.strip() for cell in line.split("|")[2:-1]]
    assert cells[0] == "1,234" and cells[1] == "3.0 (2.0-4.0)" and cells[6] == "8.0"
    for case in report.by_case(json.loads((tmp_path / "results.json").read_text())["runs"]):
        assert (tmp_path / f"distillation_{case}.png").stat().st_size > 10_000


def test_equal_curves_do_not_differ():
    one = made_up(run.Model("alloy", run.TEACHER))["rdf"]
    other = {**one, "Mo-Ta": (np.array(one["Mo-Ta"]) + 0.25).tolist()}
    assert report.difference(one, one) == 0 and report.difference(other, one) == pytest.approx(0.25)


def test_g_of_a_gas_is_one_and_of_a_crystal_has_its_shells(rng):
    numbers = np.array([42, 73] * 400)
    gas = ase.Atoms(numbers, rng.uniform(0, 14, (800, 3)), cell=[14] * 3, pbc=True)
    g = run._rdf(gas, gas.positions[None], 6.0)
    for pair in ("Mo-Mo", "Mo-Ta", "Ta-Ta"):
        assert np.mean(np.array(g[pair])[60:]) == pytest.approx(1, abs=0.05)
    crystal = cases.md_start("alloy", "")
    assert len(crystal) == 128 and sorted(set(crystal.numbers)) == [42, 73]
    g = run._rdf(crystal, crystal.positions[None], 6.0)
    first = g["r"][int(np.flatnonzero(g["Mo-Ta"])[0])]
    assert first == pytest.approx(3.24 * np.sqrt(3) / 2, abs=0.06)
