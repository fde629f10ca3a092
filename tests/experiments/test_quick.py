"""The experiments on many data sets run as their READMEs say, with a tiny model and few steps."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("multitask_vs_single", "sample_efficiency", "optimizers")


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A work folder in which the experiments have run, the second one with the models of the first."""
    folder = tmp_path_factory.mktemp("work")
    before = _committed()
    for name in NAMES:
        _run(name, folder)
    assert _committed() == before, "a quick run has touched the committed results"
    return folder


def _run(name: str, folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", f"experiments.{name}.run", "--quick", "--work", str(folder), *options]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _committed() -> dict[str, bytes]:
    files = [file for name in NAMES for file in (ROOT / "experiments" / name).iterdir() if file.is_file()]
    return {str(file): file.read_bytes() for file in files}


def test_multitask_is_compared_with_single(work):
    content = json.loads((work / "multitask_vs_single" / "results.json").read_text())
    runs = {one["run"]: one for one in content["runs"]}
    assert set(runs) == {"multi", "gfn2xtb"}
    assert set(runs["multi"]["validation"]) == {"materials", "gfn2xtb"}
    for ratio in content["multi/best single"].values():
        assert all(math.isfinite(x) and x > 0 for kind in "ef" for x in ratio[kind])
    assert (work / "multitask_vs_single" / "zero_shot.png").stat().st_size > 1000
    assert (work / "base.lamjax").is_file()


def test_finetuned_is_compared_with_scratch(work):
    content = json.loads((work / "sample_efficiency_report" / "results.json").read_text())
    assert {(one["start"], one["n"]) for one in content["runs"]} == {
        (start, n) for start in ("small", "finetuned", "scratch") for n in (4, 8)
    }
    assert (work / "sample_efficiency_report" / "sample_efficiency.png").stat().st_size > 1000


def test_optimizers_are_compared(work):
    (content,) = json.loads((work / "optimizers_report" / "results.json").read_text())["runs"]
    assert content["optimizer"] == "muon" and math.isfinite(content["rmse_f"]) and len(content["curve"]) == 3
    assert (work / "optimizers_report" / "optimizers.png").stat().st_size > 1000


def test_finished_runs_are_not_repeated(work):
    files = sorted((work / "sample_efficiency").glob("*.json"))
    before = [file.stat().st_mtime_ns for file in files]
    text = _run("sample_efficiency", work)
    assert "step" not in text and [file.stat().st_mtime_ns for file in files] == before


def test_factor_in_data(monkeypatch):
    """Scratch errors that fall as n^-1/2: half the error is worth four times the frames; bounds beyond the range."""
    monkeypatch.syspath_prepend(str(ROOT))
    from experiments.sample_efficiency.run import factor

    scratch = {n: 100 / math.sqrt(n) for n in (10, 30, 100, 300)}
    assert factor(10, scratch[10] / 2, scratch).value == pytest.approx(4)
    assert factor(10, scratch[300] / 2, scratch) == (30, "at least")
    assert factor(10, scratch[10] * 2, scratch) == (1, "at most")
