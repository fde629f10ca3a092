"""The comparison with MACE: that it runs, what it is made of, and what its report says."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import ase.data
import numpy as np
import pytest
from ase.neighborlist import neighbor_list

from experiments import workflow
from experiments.baselines import models, report, run
from experiments.baselines.models import MACE, NAMES, NEQUIP
from experiments.baselines.run import BUDGETS, SETS, Run, Work
from lamjax import classical, data
from lamjax.files import locked
from lamjax.system import to_ase

ROOT = Path(__file__).parents[2]
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # fast to compile


def _made_up(run: Run) -> dict:
    """Every model has half of another's error, and the same time gives half of the error of the same steps."""
    if run.seed is None:
        numbers = {"parameters": 1234, "step": 0.05, "compilation": 9.0, "inference": 1e-4, "seconds": 60.0}
        return run._asdict() | numbers
    error = 100 * 0.5 ** (NAMES.index(run.model) + BUDGETS.index(run.budget)) + run.seed
    errors = {"rmse_e": error / 10, "rmse_f": error, "mae_e": 1.0, "mae_f": 1.0}
    tests = dict.fromkeys(SETS[run.key].downstream_tests, errors)
    steps = 300 if run.budget == "steps" else 450
    return run._asdict() | {"steps": steps, "seconds": 30.0, "test": errors, "zero_shot": tests}


def _results() -> dict:
    costs = [_made_up(Run(key, model)) for key in SETS for model in NAMES]
    runs = [_made_up(Run(k, m, b, s)) for k in SETS for m in NAMES for b in BUDGETS for s in range(2)]
    nothing = {"rmse_e": 40.0, "rmse_f": 300.0}
    without = {
        key: {"test": nothing, "zero_shot": dict.fromkeys(of.downstream_tests, nothing)} for key, of in SETS.items()
    }
    return {"costs": costs, "runs": runs, "not trained": without}


def test_report_says_what_was_measured(tmp_path):
    (tmp_path / "README.md").write_text("# Title\n<!-- table of run.py -->\nold\n<!-- end of table -->\nend\n")
    report.tell(_results(), tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "| dimers | MACE | 1,234 | 50 | 9 | 100 |" in text and "old" not in text and text.endswith("end\n")
    lines = [line for line in text.splitlines() if line.startswith("| dimers, held out | forces")]
    steps, seconds = ([cell.strip() for cell in line.strip("|").split("|")][2:] for line in lines)
    assert steps == ["300", "100 (100-101)", "50 (50-51)", "26 (25-26)", "13 (12-14)"]
    assert seconds[:3] == ["300", "50 (50-51)", "26 (25-26)"]
    assert "| dimers, steps |  |  | 450 | 450 | 450 | 450 |" in text
    assert len(json.loads((tmp_path / "results.json").read_text())["runs"]) == 2 * 2 * 2 * len(NAMES)
    assert (tmp_path / "baselines.png").stat().st_size > 10_000


def test_only_sets_and_seeds_of_which_all_is_done_are_reported(tmp_path):
    costs = [Run("dimers", model) for model in NAMES]
    runs = [Run("dimers", model, budget, seed) for model in NAMES for budget in BUDGETS for seed in (0, 1)]
    made = [_made_up(one) for one in (*costs, *runs[:-1])]
    workflow.restore(made, tmp_path, lambda one: Run(*(one[k] for k in Run._fields)).name)
    done = run.finished(costs, runs, tmp_path)
    assert {one["seed"] for one in done["runs"]} == {0} and len(done["costs"]) == len(NAMES)
    (tmp_path / f"{costs[0].name}.json").unlink()
    assert run.finished(costs, runs, tmp_path) == {"costs": [], "runs": []}


def test_the_same_time_is_as_many_steps_as_the_model_takes_in_it(tmp_path):
    work = Work(tmp_path, quick=False, steps=300)
    workflow.restore([_made_up(Run("dimers", NEQUIP))], work.results, lambda one: f"{one['key']}-{one['model']}")
    assert run.steps_of(Run("dimers", NEQUIP, "steps", 0), work) == 300
    assert run.steps_of(Run("dimers", NEQUIP, "time", 0), work) == round(run.SECONDS / 0.05)


@pytest.mark.parametrize("step", [run.SECONDS / 400, run.SECONDS / 200])  # s: more and fewer than 300 steps
def test_the_longer_run_goes_on_from_the_shorter(step, tmp_path, monkeypatch):
    work, done = Work(tmp_path, quick=False, steps=300), []
    monkeypatch.setattr(run, "measure", lambda one, work: done.append((one.budget, run.steps_of(one, work))) or {})
    run.train("dimers", NEQUIP, 0, work)
    assert not done, "its cost is not known yet"
    cost = _made_up(Run("dimers", NEQUIP)) | {"step": step}
    workflow.restore([cost], work.results, lambda one: f"{one['key']}-{one['model']}")
    with locked(work.results / f"dimers-{NEQUIP}-0.lock"):
        run.train("dimers", NEQUIP, 0, work)
    assert not done, "another process trains it"
    run.train("dimers", NEQUIP, 0, work)
    assert sorted(done) == sorted([("steps", 300), ("time", round(run.SECONDS / step))])
    assert done == sorted(done, key=lambda one: one[1])


def test_models_know_the_energies_and_neighbours_of_the_training_frames():
    frames = data.read(str(workflow.DATA / "oxides_bo2/pbe_train.extxyz.gz"))[::40]
    facts = models.facts(frames)
    counts, energies, forces = workflow.labels(frames)
    numbers = [ase.data.atomic_numbers[symbol] for symbol in facts.elements]
    assert np.std(energies - counts[:, numbers] @ facts.energies) < 0.1 * np.std(energies)
    assert facts.force == pytest.approx(np.linalg.norm(forces) / np.sqrt(len(forces)), abs=1e-4)
    n = sum(len(neighbor_list("i", to_ase(frame.system), models.CUTOFF)) for frame in frames)
    assert facts.n_neighbors == pytest.approx(n / counts.sum(), abs=0.01)


def test_energies_per_element_alone_are_what_a_model_is_held_against(tmp_path):
    of = SETS["oxides"]
    result = run.without_model(of, Work(tmp_path, quick=True, steps=3))
    (tio2,) = result["zero_shot"].values()
    _, _, forces = workflow.labels(data.read(workflow.files(workflow.QUICK, tmp_path, of.downstream_tests.values())))
    assert tio2["rmse_f"] == pytest.approx(1000 * np.sqrt(np.mean(forces**2)))
    assert all(math.isfinite(x) for one in (result["test"], tio2) for x in one.values())


@pytest.mark.parametrize("key", SETS)
def test_what_is_held_out_is_not_what_is_measured_without_training(key, tmp_path):
    """Every file is measured under its own name, whatever the downstream tests of a set are called."""
    of, work = SETS[key], Work(tmp_path, quick=True, steps=3)
    result = run.evaluated(classical.morse(depth=0.3, width=1.4, distance=2.0, cutoff=5.0), key, work)
    files = {"held out": of.test} | {f"zero-shot, {name}": file for name, file in of.downstream_tests.items()}
    assert result.keys() == {"probe", *files}
    for name, file in files.items():
        expected = data.read(workflow.files(work.size, tmp_path, [file]))
        for a, b in zip(result[name].frames, expected, strict=True):
            np.testing.assert_array_equal(a.labels.forces, b.labels.forces)


def _quick(work: Path, *names: str) -> dict:
    command = [sys.executable, "-m", "experiments.baselines.run", "--quick", "--work", str(work), "--models", *names]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", "XLA_FLAGS": FLAGS}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((work / "baselines_report" / "results.json").read_text())


def _check(found: dict, names: tuple[str, ...]) -> None:
    assert {one["model"] for one in found["costs"]} == set(names)
    assert {(one["model"], one["budget"], one["steps"]) for one in found["runs"]} == {
        (name, budget, steps) for name in names for budget, steps in (("steps", 3), ("time", 4))
    }
    errors = [errors for one in found["runs"] for errors in (one["test"], *one["zero_shot"].values())]
    assert all(math.isfinite(x) for one in errors for x in one.values())


def test_it_runs(tmp_path):
    before = {file: file.read_bytes() for file in run.HERE.iterdir() if file.is_file()}
    _check(_quick(tmp_path, NEQUIP), (NEQUIP,))
    assert before == {file: file.read_bytes() for file in run.HERE.iterdir() if file.is_file()}


@pytest.mark.slow
def test_it_runs_with_all_of_lamjax(tmp_path):
    names = tuple(name for name in NAMES if name != MACE)
    _check(_quick(tmp_path, *names), names)


@pytest.mark.mlip
def test_it_runs_with_mace(tmp_path):
    _check(_quick(tmp_path, MACE), (MACE,))
