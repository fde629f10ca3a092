"""The experiment on relaxations: what is trained on and what is held out, and that it runs."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import nequip_reference as reference
import numpy as np
import pytest
from ase.geometry import find_mic

import lamjax
from experiments import workflow
from experiments.relaxation import costs, methods, report
from experiments.relaxation.bases import LARGE, read_base
from experiments.relaxation.methods import FORCES, KEPT, KEPT_FORCES, SETTINGS, START, STRESSES
from experiments.relaxation.run import SIZES, Run, finished, restore, starts, studies
from experiments.relaxation.sets import KEPT_COPIES, SETS, keep, path, split, with_bases
from lamjax import data
from lamjax.system import to_ase

ROOT = Path(__file__).parents[2]


def _names(file: str) -> set[str]:
    return {re.search(r"relax_id=(\S+)", frame)[1] for frame in workflow.frames(file)}


@pytest.mark.parametrize("key", SETS | LARGE)
def test_what_is_held_out_is_not_trained_on(key, tmp_path):
    of, tested = (SETS | {"mgo": LARGE["mgo"]})[key], []
    for seed in range(len(set(of.held_out))):
        files = split(of, seed, 0, tmp_path)
        apart = _names(files.test)
        assert apart and not apart & _names(files.pairs)
        assert _names(files.pairs) == _names(files.steps)
        if of.most != (0, 0):
            assert (len(_names(files.pairs)), len(apart)) == of.most
        if key in ("hbn", "gase"):  # whole compositions
            assert not {name.split("_")[2] for name in apart} & {name.split("_")[2] for name in _names(files.pairs)}
        tested.append(apart)
    if key in (
        once := {"si_defects": 34, "zns": 15, "hbn": 40, "gase": 40, "mgo": 2}
    ):  # no relaxation is held out twice
        assert sum(map(len, tested)) == len(set.union(*tested)) == once[key]


def test_what_is_kept_are_the_forces_of_the_base_and_no_labels(tmp_path):
    structures = workflow.write_frames(tmp_path / "some.extxyz.gz", workflow.frames(path(SETS["dimers"].kept))[::80])
    base, to = path(with_bases({"dimers": SETS["dimers"]}, tmp_path)["dimers"].base), str(tmp_path / "kept.extxyz.gz")
    keep(base, structures, to)
    potential, params = lamjax.load(base, dtype=np.float32)
    frames = data.read(to)[::KEPT_COPIES]
    assert len(frames) == 4
    for frame, labelled in zip(frames, data.read(structures), strict=True):
        np.testing.assert_allclose(frame.system.positions, labelled.system.positions, atol=1e-6)
        np.testing.assert_array_equal(frame.labels.weights, [0, 1, 0])
        prediction = lamjax.predict(potential, params, frame.system, lamjax.allocate(potential, frame.system))
        np.testing.assert_allclose(frame.labels.forces, prediction.forces, atol=2e-5)


def test_what_is_kept_is_not_held_out(tmp_path):
    of = SETS["dimers"]
    dimers = {re.search(r"config_id=(mol\d+)_", frame)[1] for frame in workflow.frames(path(of.kept))}
    tested = {name.split("_")[0] for name in _names(split(of, 0, 0, tmp_path).test)}
    assert tested and dimers and not tested & dimers


def test_the_base_of_a_set_is_the_small_model_with_its_head(tmp_path):
    system = data.read_pairs(split(SETS["dimers"], 0, 5, tmp_path).pairs)[0].start
    made = with_bases({key: SETS[key] for key in ("dimers", "zns")}, tmp_path)
    for of in made.values():
        base, whole = lamjax.load(of.base), lamjax.load("small", of.head)
        one, other = (lamjax.predict(*model, system, lamjax.allocate(model[0], system)) for model in (base, whole))
        np.testing.assert_allclose(one.energy, other.energy, rtol=1e-12)


def test_results_are_taken_up_if_they_began_from_the_same_base(tmp_path, monkeypatch):
    run = Run("zns", "BPTT", seed=3)
    content = {"base": "another", "methods": [_made_up(run)]}
    (tmp_path / "results.json").write_text(json.dumps(content))
    restore(tmp_path / "results.json", tmp_path / "runs")
    assert not list((tmp_path / "runs").iterdir())
    content["base"] = workflow.shipped()
    (tmp_path / "results.json").write_text(json.dumps(content))
    restore(tmp_path / "results.json", tmp_path / "runs")
    assert json.loads((tmp_path / "runs" / f"{run.name}.json").read_text()) == content["methods"][0]
    assert finished([run, Run("zns", "base", seed=4)], tmp_path / "runs") == content["methods"]


@pytest.fixture
def weights(tmp_path) -> Path:
    """A file as Nequix writes it, of a few random numbers, that knows the elements of h-BN."""
    head = reference.header(atomic_numbers=[5, 6, 7])
    (tmp_path / "tiny.nqx").write_bytes(reference.file(head, reference.arrays(head)))
    return tmp_path / "tiny.nqx"


def test_runs_from_the_weights_of_nequix_are_kept_apart(weights, tmp_path):
    base = read_base(f"nequix:{weights}")
    of = with_bases({"hbn": base.sets["hbn"]}, tmp_path, base.model)["hbn"]
    system = data.read_pairs(split(of, 0, 0, tmp_path).pairs)[0].start
    one, other = (
        lamjax.predict(*model, system, lamjax.allocate(model[0], system)).energy
        for model in (lamjax.load(of.base), lamjax.load(weights))
    )
    np.testing.assert_allclose(one, other, rtol=1e-12)
    assert base.report != read_base("small").report and base.digest != read_base("small").digest
    run = Run("hbn", "BPTT", seed=1)
    results = {"methods": [_made_up(r) for r in (run._replace(method="base"), run._replace(method=START), run)]}
    report.tell(results, tmp_path / "report", base.option, base.digest)
    content = json.loads((tmp_path / "report" / "results.json").read_text())
    assert content["base"] == base.digest and content["command"].endswith("--base nequix:tiny.nqx")
    restore(tmp_path / "report" / "results.json", tmp_path / "of_small")
    assert not list((tmp_path / "of_small").iterdir())
    restore(tmp_path / "report" / "results.json", tmp_path / "of_nequix", base.digest)
    assert len(list((tmp_path / "of_nequix").iterdir())) == 3


def test_other_bases_are_refused(tmp_path):
    for text in ("large", "nequix", "nequix:", f"nequix:{tmp_path / 'none.nqx'}", "small:x"):
        with pytest.raises(SystemExit, match="there is no such base. Say small, or nequix:PATH"):
            read_base(text)


@pytest.mark.parametrize("key", LARGE)
def test_from_a_strong_base_paths_are_short(key, tmp_path):
    of = LARGE[key]._replace(base=Path("../../lamjax/assets/models/small.lamjax"))
    files = split(of, 0, 0, tmp_path)
    made = {way: methods.structures(way, of, files, {}) for way in of.methods if way in methods.OBJECTIVES}
    assert made["BPTT"].objective.relax.adjoint.steps == 10
    assert all((one.epochs, one.batch_size) == (of.settings["epochs"], 2) for one in made.values())
    if "hybrid" in made:
        adjoint = made["hybrid"].objective.relax.adjoint
        assert adjoint.window == 5 and adjoint.implicit.tol == methods.OBJECTIVES["implicit"]["relax"]["adjoint"]["tol"]


def test_costs_of_what_is_measured_so_far_are_written(tmp_path, capsys):
    (tmp_path / "costs").mkdir()
    cost = {"preparation": 50.0, "compilation": 40.0, "step": 30.0, "steps": 13}
    (tmp_path / "costs" / "Newton.json").write_text(json.dumps(cost))
    base = read_base("small")._replace(report=tmp_path)
    costs.write(["Newton", "BPTT"], base, tmp_path / "costs")
    assert "| Newton | 30.0 | 90 | 13 | 8.0 |" in capsys.readouterr().out
    content = json.loads((tmp_path / "costs.json").read_text())
    assert content["costs"] == {"Newton": cost} and content["base"] == base.digest and content["core_minutes"] == 2.5


def test_stresses_are_learned_where_the_name_says_so(tmp_path):
    of = SETS["ypo4"]
    files = split(of, 0, 3, tmp_path)
    made = {way: methods.forces(way, of, files, 3, str(tmp_path / "run"), 0) for way in (FORCES, STRESSES, KEPT_FORCES)}
    assert [config.loss.limit_pref_v for config in made.values()] == [0.0, 1.0, 1.0]
    assert made[FORCES].train == made[STRESSES].train == (files.steps,)
    assert made[KEPT_FORCES].train == (files.steps, files.earlier)
    then = methods.structures(KEPT, of, files, {"output": str(tmp_path / "run")})
    assert then.objective.relax.adjoint.type == "hybrid" and then.replay.loss.limit_pref_v == 1.0
    assert tuple(then.replay.files) == (files.steps, files.earlier)
    assert methods.structures("BPTT", of, files, {}).replay.loss.limit_pref_v == 0.0


def test_pairs_are_the_ends_of_relaxations_and_nested_subsets(tmp_path):
    few, more = (split(SETS["dimers"], 3, n, tmp_path / str(n)) for n in (5, 10))
    assert len(_names(few.pairs)) == 5 and _names(few.pairs) < _names(more.pairs)
    pairs = data.read_pairs(few.pairs)
    steps = {(f.info["relax_id"], f.info["step"]): f for f in data.read(few.steps)}
    for pair in pairs:
        last = max(step for name, step in steps if name == pair.info["relax_id"])
        np.testing.assert_array_equal(pair.target.positions, steps[pair.info["relax_id"], last].system.positions)


def test_starts_are_measured_as_they_are(tmp_path):
    """Against ASE's minimum images; in a crystal only a common translation is taken out."""
    pairs = data.read_pairs(split(SETS["hbn"], 0, 5, tmp_path).pairs)
    result = starts(pairs)
    for dq, largest, pair in zip(result.dq, result.largest, pairs, strict=True):
        a, b = to_ase(pair.start), to_ase(pair.target)
        way, mass = find_mic(b.positions - a.positions, a.cell, a.pbc)[0], a.get_masses()[:, None]
        way -= (mass * way).sum(axis=0) / mass.sum()
        assert dq == pytest.approx(np.sqrt((mass * way**2).sum()), rel=1e-5) and dq > 0.5
        assert largest == pytest.approx(np.linalg.norm(way, axis=1).max(), rel=1e-5)
    assert not result.converged.any() and not result.n_steps.any()


def _made_up(run: Run) -> dict:
    """A result in which training halves every distance and adds 5 % to the forces elsewhere."""
    trained = run.method != "base"
    dq = np.array([1.0, 2.0, 4.0]) / (2 if trained else 1)
    dq = np.array([0.7, 0.9, 1.0]) if run.method == START else dq
    ones = {key: [1.0] * 3 for key in ("n_steps", "converged", "volume")} | {"failed": [0.0] * 3}
    distances = {"dq": dq.tolist(), "rmsd": (dq / 10).tolist(), "largest": (dq / 3).tolist()}
    forces = {"paths_rmse_f": 0.2} if SETS[run.key].labelled else {}
    forces |= {"elsewhere_rmse_f": 0.105 if trained else 0.1}
    forces = {} if run.method == START else forces
    return {
        **run._asdict(),
        **ones,
        **distances,
        **forces,
        "seconds": 10.0,
        "seconds_judged": 1.0,
        "steps": 13,
        "minimiser": {"eta": 0.01 + run.seed},
    }


def test_report_says_what_was_measured(tmp_path, capsys):
    (tmp_path / "README.md").write_text("# Title\n<!-- table of run.py -->\nold\n<!-- end of table -->\nend\n")
    results = {study: [_made_up(run) for run in runs] for study, runs in studies(range(2)).items()}
    report.tell(results, tmp_path)
    text = (tmp_path / "README.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| BPTT"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:5] == ["1.00", "-50 (-50 to -50)", "1.17", "0.100"]
    assert cells[5:10] == ["100 %", "33 %", "67 %", "100 %", "200 (+0 %)"]
    assert cells[10] == "105 (+5 %)"
    still = next(line for line in text.splitlines() if line.startswith("| not relaxed"))
    assert [cell.strip() for cell in still.strip("|").split("|")][5:] == ["100 %", "", "100 %", "", "", "", ""]
    unlabelled = "| Newton | 1.00 | -50 (-50 to -50) | 1.17 | 0.100 | 100 % | 33 % | 67 % | 100 % |  | 105 (+5 %) |"
    assert unlabelled in text
    assert all(f"| {setting} |" in text for setting in SETTINGS)
    assert "| eta (Å²/eV) 0.51 (0.01 to 1.01) |" in text
    assert all(f"{n} pairs" in text for n in SIZES)
    assert "old" not in text and text.endswith("end\n")
    for name in ("shares", "settings", "pairs", *(f"methods_{key}" for key in SETS)):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000 and (tmp_path / f"{name}.svg").stat().st_size > 5000
    assert set(results) <= set(json.loads((tmp_path / "results.json").read_text()))


@pytest.mark.slow
def test_it_runs(tmp_path):
    command = [sys.executable, "-m", "experiments.relaxation.run", "--quick", "--work", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "report" / "results.json").read_text())["methods"]
    assert {one["method"] for one in content} == {"base", "not relaxed", "forces", "Newton", "BPTT"}
    assert all(math.isfinite(x) for one in content for x in one["dq"])
