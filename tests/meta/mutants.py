"""Single faults put into a copy of the library, to see which of them no test notices.

    python tests/meta/mutants.py --results faults.json                        # 150 faults; goes on where it stopped
    python tests/meta/mutants.py --results faults.json --only losses --again  # the survivors, after a test was added

A fault changes one place of the syntax tree: a sign, a comparison, a constant, an order of arguments, an axis, a
statement left out. The choice depends on the seed and the sources alone. Which functions a test calls is recorded
once; then only the tests that call the faulty function run, the quickest first. A fault is caught when one of them
fails or does not end. The results keep each fault's difference, and what noticed it.
"""

import argparse
import contextlib
import cProfile
import fnmatch
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import faults
import pytest

ROOT = Path(__file__).parents[2]
COPIED = ("lamjax", "tests", "experiments", "docs", "pyproject.toml", "README.md", "LICENSE")


class Area(NamedTuple):
    """A part of the library: how many faults it gets, its files, and the tests that concern them, fastest first."""

    n_faults: int
    files: tuple[str, ...]  # patterns below lamjax/
    tests: tuple[str, ...]  # below tests/; the file of a module's own name, and those in NEAREST, belong to it as well


AREAS = {
    "units": Area(5, ("units.py",), ()),
    "system": Area(17, ("system.py",), ()),
    "losses": Area(24, ("losses/*.py",), ("training/test_multitask.py",)),
    "statistics": Area(
        12, ("data/statistics.py", "data/columns.py"), ("data/test_statistics.py", "data/test_store.py")
    ),
    "read": Area(12, ("data/reading.py", "frames.py", "data/deepmd.py"), ("data/test_read.py", "audit/test_sets.py")),
    "neighbors": Area(14, ("neighbors/*.py",), ("neighbors/test_limits.py", "neighbors/test_random_cells.py")),
    "interop": Area(6, ("interop/*.py", "interop/deepmd/*.py"), ("interop/test_deepmd_files.py",)),
    "relaxation": Area(20, ("relaxation/*.py",), ("relaxation/test_relax.py", "relaxation/test_cells.py")),
    "dynamics": Area(10, ("dynamics/*.py",), ("dynamics/test_dynamics.py", "dynamics/test_output.py")),
    "training": Area(24, ("training/*.py",), ("training/test_step.py", "training/test_run.py")),
    "distillation": Area(6, ("distillation/*.py",), ("distillation/test_rounds.py",)),
}
# tests of a module beside (after) those of its own name
NEAREST = {
    "system.py": ("losses/test_labels.py",),
    "data/deepmd.py": ("data/test_deepmd.py",),
    "losses/geometry.py": ("losses/test_geometry.py", "losses/test_target.py"),
    "losses/structure.py": ("losses/test_structure.py", "losses/test_target.py", "losses/test_geometry.py"),
    "neighbors/grid.py": ("neighbors/test_random_cells.py",),
    "neighbors/verlet.py": ("neighbors/test_verlet.py",),
    "relaxation/implicit.py": ("relaxation/test_adjoints.py",),
    "relaxation/adjoints.py": ("relaxation/test_adjoints.py",),
    "relaxation/walk.py": ("relaxation/test_adjoints.py", "relaxation/test_gradients.py"),
    "relaxation/steps.py": ("relaxation/test_adjoints.py", "relaxation/test_gradients.py"),
    "relaxation/descent.py": ("relaxation/test_adjoints.py", "test_examples.py"),
    "relaxation/surface.py": ("relaxation/test_cells.py", "relaxation/test_gradients.py"),
    "relaxation/layouts.py": ("relaxation/test_relax.py",),
    "relaxation/flat.py": ("relaxation/test_stream.py",),
    "relaxation/buckets.py": ("relaxation/test_stream.py",),
    "relaxation/slots.py": ("relaxation/test_stream.py",),
    "interop/jax_md/*.py": ("interop/test_jax_md.py", "interop/test_energy_fn.py"),
    "interop/deepmd/inputs.py": ("interop/test_inputs.py",),
    "training/loops.py": ("training/test_fit.py",),
    "training/state.py": ("training/test_fit.py",),
    "training/tasks.py": ("training/test_multitask.py",),
    "training/slots.py": ("training/test_multitask.py",),
    "training/engine.py": ("training/test_engine.py", "training/test_run.py"),
    "training/labels.py": ("training/test_run.py", "training/test_multitask.py"),
    "training/folder.py": ("training/test_run.py",),
    "training/structures*.py": ("training/test_structures.py", "cli/test_finetune_structures.py"),
    "training/properties*.py": ("training/test_properties.py", "cli/test_finetune_properties.py"),
    "evaluation/retention.py": ("cli/test_finetune.py",),
    "evaluation/parity.py": ("training/test_run.py", "cli/test_evaluate.py"),
    "dynamics/hdf5.py": ("dynamics/test_output.py",),
    "dynamics/output.py": ("dynamics/test_output.py",),
    "dynamics/restart.py": ("dynamics/test_output.py", "cli/test_md.py"),
    "distillation/explore.py": ("distillation/test_explore.py",),
    "distillation/label.py": ("distillation/test_label.py",),
}


class Watch:
    """A plugin of pytest that records the seconds of each test, and which functions of the library it calls."""

    def __init__(self, folder: Path):
        self.package = str(folder / "lamjax")
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, set[str]] = defaultdict(set)

    def _recorded(self, name: str):
        start, profile = time.perf_counter(), cProfile.Profile()
        with profile:
            result = yield
        self.seconds[name.removesuffix(" setup")] += time.perf_counter() - start
        codes = [entry.code for entry in profile.getstats() if not isinstance(entry.code, str)]
        mine = [code for code in codes if code.co_filename.startswith(self.package)]
        self.calls[name] |= {f"lamjax{c.co_filename[len(self.package) :]}:{c.co_firstlineno}" for c in mine}
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item):
        return (yield from self._recorded(f"{item.nodeid} setup"))  # fixtures may serve every test of the file

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        return (yield from self._recorded(item.nodeid))


class Record(NamedTuple):
    """What was seen of the tests of one file without a fault."""

    seconds: dict[str, float]  # by test
    calls: dict[str, list[str]]  # functions ("file:line") by test
    fixtures: list[str]  # functions that the fixtures of the file call

    def callers(self, function: str | None) -> list[str]:
        """The tests that call a function, the quickest first; all tests for None or what a fixture calls."""
        found = [t for t in self.seconds if function is None or function in self.calls[t] or function in self.fixtures]
        return sorted(found, key=self.seconds.get)


def files_of(area: Area) -> list[Path]:
    """The modules of an area."""
    return sorted(path for pattern in area.files for path in (ROOT / "lamjax").glob(pattern))


def tests_of(area: Area, file: str) -> list[str]:
    """Test files of a module, below the repository: of its own name, of its table entry, of its area."""
    inside = Path(file).relative_to("lamjax")
    same_name = str(inside.with_name(f"test_{inside.name}"))
    nearest = [test for pattern in NEAREST if fnmatch.fnmatch(str(inside), pattern) for test in NEAREST[pattern]]
    names = dict.fromkeys([same_name, *nearest, *area.tests])
    return [f"tests/{name}" for name in names if (ROOT / "tests" / name).is_file()]


def run_tests(folder: Path, tests: list[str], seconds: float, record: Path | None = None) -> tuple[str, str]:
    """("passed" | "failed" | "too long", last lines of what pytest wrote), in a forked process."""
    log = folder / "pytest.log"
    process = multiprocessing.get_context("fork").Process(target=_pytest, args=(folder, tests, log, record))
    process.start()
    process.join(seconds)
    too_long = process.is_alive()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # with whatever the tests started
    process.join()
    said = log.read_text(errors="replace")
    if process.exitcode == pytest.ExitCode.USAGE_ERROR and "not found:" in said:
        raise RuntimeError(f"pytest does not know all of these tests: {tests}\n{said[-2000:]}")
    end = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR", "E  "))]
    return "too long" if too_long else "failed" if process.exitcode else "passed", "\n".join(end[-3:])[:600]


def _pytest(folder: Path, tests: list[str], log: Path, record: Path | None) -> None:
    os.setsid()
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    sys.path.insert(0, str(folder))
    watch = Watch(folder)
    options = ["-x", "-n", "0", "-q", "--tb=line", "-rfE", "-p", "no:cacheprovider"]
    status = pytest.main([*options, *tests], plugins=[watch] if record else [])
    if record:
        fixtures = set().union(*(calls for name, calls in watch.calls.items() if name.endswith(" setup")))
        calls = {name: sorted(watch.calls[name]) for name in watch.seconds}
        record.write_text(json.dumps(Record(watch.seconds, calls, sorted(fixtures))))
    os._exit(status)


def recorded(folder: Path, file: str, results: Path) -> Record:
    """What the tests of a file do without a fault, kept beside the results until the file changes.

    Raises RuntimeError if a test fails as it is.
    """
    kept = results.with_suffix(".tests") / f"{file.replace('/', '-')}.json"
    kept.parent.mkdir(exist_ok=True)
    if not kept.exists() or kept.stat().st_mtime < (ROOT / file).stat().st_mtime:
        status, end = run_tests(folder, [file], 3600, kept.absolute())
        if status != "passed":
            kept.unlink(missing_ok=True)
            raise RuntimeError(f"{file} fails without any fault ({status}). Mend it first.\n{end}")
    return Record(*json.loads(kept.read_text()))


def examine(folder: Path, fault: dict, tests: list[str], results: Path) -> dict:
    """The outcome of one fault: which test noticed it, how, and after how many seconds."""
    function = fault["function"] and f"{fault['file']}:{fault['function']}"
    records = [recorded(folder, test, results) for test in tests]
    callers = [test for record in records for test in record.callers(function)]
    usual = sum(record.seconds.get(test, 0) for record in records for test in callers)
    path, start = folder / fault["file"], time.time()
    right = path.read_text()
    path.write_text(fault["source"])
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
        compiled.unlink()
    try:
        status, how = run_tests(folder, callers, 120 + 20 * usual) if callers else ("passed", "no test calls it")
    finally:
        path.write_text(right)
    outcome = {
        "outcome": "survived" if status == "passed" else "caught",
        "how": how or status,
        "tests": tests,
        "n_tests": len(callers),
        "seconds": round(time.time() - start, 1),
    }
    return {key: value for key, value in fault.items() if key != "source"} | outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="JSON file outside the repository, also read")
    parser.add_argument("--only", nargs="+", choices=AREAS, default=list(AREAS))
    parser.add_argument("--seed", default="0")
    parser.add_argument("--again", action="store_true", help="examine those that survived once more")
    parser.add_argument("--tests", nargs="+", default=[], help="run these test files too")
    options = parser.parse_args()
    outcomes = json.loads(options.results.read_text()) if options.results.exists() else {}
    for module in ("jax", "optax", "ase.io"):  # slow to import: once, before the processes are forked
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as name:
        for part in COPIED:
            copied = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
            copied(ROOT / part, Path(name) / part)
        for key in options.only:
            _examine_area(key, Path(name), outcomes, options)
    _summary(outcomes.values())


def _examine_area(key: str, folder: Path, outcomes: dict, options) -> None:
    for fault in faults.choose(files_of(AREAS[key]), AREAS[key].n_faults, ROOT, f"{options.seed} {key}"):
        known = outcomes.get(fault["name"])
        if known and not (options.again and known["outcome"] == "survived"):
            continue
        tests = [*tests_of(AREAS[key], fault["file"]), *options.tests]
        found = {"area": key} | examine(folder, fault, tests, options.results)
        outcomes[fault["name"]] = found
        options.results.write_text(json.dumps(outcomes, indent=1))
        place = f"{fault['file']}:{fault['line']} ({fault['kind']})"
        print(f"{found['outcome']:9}{found['seconds']:7.1f} s{found['n_tests']:4} tests  {place}", flush=True)


def _summary(outcomes) -> None:
    for area in AREAS:
        mine = [x for x in outcomes if x["area"] == area]
        print(f"{area:13} {sum(x['outcome'] == 'caught' for x in mine):3} of {len(mine):3} caught")
        for x in mine:
            if x["outcome"] != "caught":
                print(f"    {x['file']}:{x['line']} ({x['kind']})", *x["difference"], sep="\n        ")


if __name__ == "__main__":
    main()
