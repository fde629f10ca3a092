"""Single faults put into a copy of the library, to see which of them no test notices.

    python tests/meta/mutants.py --results faults.json             # 150 faults; goes on where it stopped
    python tests/meta/mutants.py --results faults.json --only losses --again   # the survivors, after a test was added

A fault changes one place of the syntax tree: a sign, a comparison, a constant, an order of arguments, an axis, a
statement left out. The choice depends on the seed and the sources alone. The narrowest tests of the module run first; a
fault is caught when one of them fails or does not end. The results keep each fault's difference, and what noticed it.
"""

import argparse
import ast
import contextlib
import copy
import difflib
import fnmatch
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
COPIED = ("lamjax", "tests", "experiments", "docs", "pyproject.toml", "README.md", "LICENSE")


class Area(NamedTuple):
    """A part of the library: how many faults it gets, its files, and the tests that concern them, fastest first."""

    n_faults: int
    files: tuple[str, ...]  # patterns below lamjax/
    tests: tuple[str, ...]  # below tests/: of modules that have no tests of their own name, nor an entry in NEAREST


AREAS = {
    "units": Area(5, ("units.py",), ()),
    "system": Area(17, ("system.py",), ()),
    "losses": Area(24, ("losses/*.py",), ("training/test_multitask.py",)),
    "statistics": Area(
        12, ("data/statistics.py", "data/columns.py"), ("data/test_statistics.py", "data/test_store.py")
    ),
    "read": Area(12, ("data/read.py", "data/frames.py", "data/deepmd.py"), ("data/test_read.py", "data/test_audit.py")),
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
    "relaxation/buckets.py": ("relaxation/test_stream.py",),
    "relaxation/slots.py": ("relaxation/test_stream.py",),
    "interop/jax_md.py": ("interop/test_jax_md.py",),
    "interop/deepmd/inputs.py": ("interop/test_inputs.py",),
    "training/fit.py": ("training/test_fit.py",),
    "training/state.py": ("training/test_fit.py",),
    "training/tasks.py": ("training/test_multitask.py",),
    "training/slots.py": ("training/test_multitask.py",),
    "training/structures*.py": ("training/test_structures.py", "cli/test_finetune_structures.py"),
    "training/forgetting.py": ("cli/test_finetune.py",),
    "training/parity.py": ("training/test_run.py", "cli/test_evaluate.py"),
    "dynamics/hdf5.py": ("dynamics/test_output.py",),
    "dynamics/output.py": ("dynamics/test_output.py",),
    "dynamics/restart.py": ("dynamics/test_output.py", "cli/test_md.py"),
    "distillation/explore.py": ("distillation/test_explore.py",),
    "distillation/label.py": ("distillation/test_label.py",),
}


class Fault(NamedTuple):
    """One changed place: the child `field[index]` of `parent` becomes `replacement`."""

    kind: str
    line: int
    parent: ast.AST
    field: str
    index: int | None
    replacement: ast.AST


COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
COMPARISONS |= {ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
OPERATIONS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
OPERATIONS |= {ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
PAIRS = [
    ("min", "max"),
    ("minimum", "maximum"),
    ("any", "all"),
    ("argmin", "argmax"),
    ("zeros", "ones"),
    ("sum", "mean"),
]
PAIRS += [("floor", "ceil"), ("sin", "cos"), ("zeros_like", "ones_like"), ("segment_min", "segment_max")]
OTHER_NAME = {**dict(PAIRS), **{b: a for a, b in PAIRS}}


def changed(node: ast.AST, **fields) -> ast.AST:
    """A copy of the node with other fields."""
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def constants(node) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.Constant(value=bool(value)):
            yield "flag", changed(node, value=not value)
        case ast.Constant(value=int(value)):
            yield "constant", changed(node, value=value + 1)
            if value == 1:
                yield "constant", changed(node, value=0)
        case ast.Constant(value=float(value)):
            yield "constant", changed(node, value=value * 2 if value else 1.0)
        case ast.UnaryOp(op=ast.USub()):
            yield "sign", node.operand
        case ast.UnaryOp(op=ast.Not()):
            yield "condition", node.operand
        case ast.UnaryOp(op=ast.Invert()):
            yield "condition", node.operand


def operators(node) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARISONS:
            yield "comparison", changed(node, ops=[COMPARISONS[type(op)]()])
            if isinstance(op, ast.Lt | ast.Gt | ast.LtE | ast.GtE):
                yield "comparison", changed(node, left=node.comparators[0], comparators=[node.left])
        case ast.BinOp(op=ast.MatMult()):
            yield "operator", changed(node, left=node.right, right=node.left)
        case ast.BinOp(op=op) if type(op) in OPERATIONS:
            yield "operator", changed(node, op=OPERATIONS[type(op)]())
        case ast.AugAssign(op=op) if type(op) in OPERATIONS:
            yield "operator", changed(node, op=OPERATIONS[type(op)]())
        case ast.BoolOp():
            yield "and/or", changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
            yield "and/or", changed(node, values=node.values[:-1]) if len(node.values) > 2 else node.values[0]


def calls(node) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.Call(func=ast.Attribute(attr="where"), args=[condition, a, b]):
            yield "where", changed(node, args=[condition, b, a])
        case ast.Call(func=ast.Attribute(attr="swapaxes" | "transpose")):
            yield "transpose", node.args[0]
        case ast.Call(args=[a, b, *rest]) if not any(isinstance(x, ast.Starred) for x in (a, b)):
            yield "arguments", changed(node, args=[b, a, *rest])
        case ast.Attribute(attr="T"):
            yield "transpose", node.value
        case ast.Attribute(attr=name) if name in OTHER_NAME:
            yield "reduction", changed(node, attr=OTHER_NAME[name])
        case ast.Name(id="min" | "max" | "any" | "all" as name):
            yield "reduction", changed(node, id=OTHER_NAME[name])
    if isinstance(node, ast.Call):
        for i, keyword in enumerate(node.keywords):
            if keyword.arg not in DEFENSIVE:
                yield "keyword left out", changed(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])


def statements(node) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.If() | ast.IfExp() | ast.While():
            yield "condition", changed(node, test=ast.UnaryOp(ast.Not(), node.test))
        case ast.Expr(value=ast.Call() | ast.Yield()) | ast.AugAssign() | ast.Raise() | ast.Continue():
            yield "statement left out", ast.copy_location(ast.Pass(), node)
        case ast.Assign(targets=[ast.Name(id=name)], value=value):  # a value that is computed anew from itself
            if any(isinstance(x, ast.Name) and x.id == name for x in ast.walk(value)):
                yield "statement left out", ast.copy_location(ast.Pass(), node)


OPERATORS: tuple[Callable[[ast.AST], Iterator[tuple[str, ast.AST]]], ...] = (constants, operators, calls, statements)
DEFENSIVE = {None, "strict", "indices_are_sorted"}  # keywords that change nothing for right input
NO_CODE = {"annotation", "returns", "decorator_list", "exc", "names", "format_spec"}  # types and messages


def faults(parent: ast.AST, line: int = 0) -> Iterator[Fault]:
    """All faults below a node of the tree, in the order of the source."""
    for field, value in ast.iter_fields(parent):
        if field in NO_CODE or isinstance(parent, ast.JoinedStr) or getattr(parent, "arg", "") in DEFENSIVE - {None}:
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST):
                here = getattr(child, "lineno", line)
                for operator in OPERATORS:
                    for kind, new in operator(child):
                        yield Fault(kind, here, parent, field, index, new)
                if not _is_message(child):
                    yield from faults(child, here)


def _is_message(node: ast.AST) -> bool:
    """Whether the node is a warning, whose arguments are words."""
    return isinstance(node, ast.Call) and ast.unparse(node.func) in {"warnings.warn", "print"}


def apply(tree: ast.Module, fault: Fault) -> str:
    """The source of the tree with the fault; the tree itself stays as it was."""
    children = getattr(fault.parent, fault.field)
    try:
        if fault.index is None:
            setattr(fault.parent, fault.field, fault.replacement)
        else:
            setattr(
                fault.parent, fault.field, [*children[: fault.index], fault.replacement, *children[fault.index + 1 :]]
            )
        return ast.unparse(ast.fix_missing_locations(tree))
    finally:
        setattr(fault.parent, fault.field, children)


def choose(area: Area, root: Path, seed: str) -> list[dict]:
    """The faults of an area: kinds in turn, at most one a line, each with its file, difference and faulty source."""
    rng, by_kind = random.Random(seed), {}
    for path in sorted(p for pattern in area.files for p in (root / "lamjax").glob(pattern)):
        tree = ast.parse(path.read_text())
        for fault in faults(tree):
            by_kind.setdefault(fault.kind, []).append((path, tree, fault))
    chosen: dict[tuple[Path, int], dict] = {}
    while len(chosen) < area.n_faults and any(by_kind.values()):
        kinds = sorted(kind for kind in by_kind if by_kind[kind])
        for kind in rng.sample(kinds, len(kinds)):
            path, tree, fault = by_kind[kind].pop(rng.randrange(len(by_kind[kind])))
            before, after = ast.unparse(tree), apply(tree, fault)
            if before != after and (path, fault.line) not in chosen and len(chosen) < area.n_faults:
                chosen[path, fault.line] = _described(path.relative_to(root), fault, before, after)
    return list(chosen.values())


def _described(path: Path, fault: Fault, before: str, after: str) -> dict:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    difference = [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]
    name = hashlib.sha1("\n".join([str(path), str(fault.line), *difference]).encode()).hexdigest()[:10]
    return {
        "name": name,
        "file": str(path),
        "line": fault.line,
        "kind": fault.kind,
        "difference": difference,
        "source": after,
    }


def tests_of(area: Area, file: str) -> list[str]:
    """Test files of a module, below the repository, in the order in which they run."""
    inside = Path(file).relative_to("lamjax")
    same_name = str(inside.with_name(f"test_{inside.name}"))
    nearest = [test for pattern in NEAREST if fnmatch.fnmatch(str(inside), pattern) for test in NEAREST[pattern]]
    own = [name for name in dict.fromkeys([same_name, *nearest]) if (ROOT / "tests" / name).is_file()]
    return [f"tests/{name}" for name in own or area.tests]


def run_tests(folder: Path, tests: list[str], seconds: float) -> tuple[str, str]:
    """("passed" | "failed" | "too long", last lines of what pytest wrote), in a forked process."""
    log = folder / "pytest.log"
    process = multiprocessing.get_context("fork").Process(target=_pytest, args=(folder, tests, log))
    process.start()
    process.join(seconds)
    too_long = process.is_alive()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # with whatever the tests started
    process.join()
    end = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(("FAILED", "ERROR", "E  "))]
    return "too long" if too_long else "failed" if process.exitcode else "passed", "\n".join(end[-3:])[:600]


def _pytest(folder: Path, tests: list[str], log: Path) -> None:
    os.setsid()
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    sys.path.insert(0, str(folder))
    import pytest

    os._exit(pytest.main(["-x", "-n", "0", "-q", "--tb=line", "-rfE", "-p", "no:cacheprovider", *tests]))


def examine(folder: Path, fault: dict, tests: list[str], usual: dict[str, float]) -> dict:
    """The outcome of one fault: which test file noticed it, how, and after how many seconds."""
    path, start = folder / fault["file"], time.time()
    right = path.read_text()
    path.write_text(fault["source"])
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
        compiled.unlink()
    outcome = {"outcome": "survived", "tests": tests}
    try:
        for test in tests:
            status, end = run_tests(folder, [test], 60 + 10 * usual[test])
            if status != "passed":
                outcome = {"outcome": "caught", "by": test, "how": end if status == "failed" else status}
                break
    finally:
        path.write_text(right)
    return {k: v for k, v in fault.items() if k != "source"} | outcome | {"seconds": round(time.time() - start, 1)}


def usual_seconds(folder: Path, tests: set[str], known: dict[str, float]) -> dict[str, float]:
    """Seconds that each test file takes without a fault; raises RuntimeError if one fails as it is."""
    for test in sorted(tests - known.keys()):
        start = time.time()
        status, end = run_tests(folder, [test], 1800)
        if status != "passed":
            raise RuntimeError(f"{test} fails without any fault ({status}). Mend it first.\n{end}")
        known[test] = round(time.time() - start, 1)
        print(f"{known[test]:7.1f} s  {test}", flush=True)
    return known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, required=True, help="JSON file, outside the repository; read and extended"
    )
    parser.add_argument("--only", nargs="+", choices=AREAS, default=list(AREAS))
    parser.add_argument("--seed", default="0")
    parser.add_argument("--again", action="store_true", help="examine those that survived once more")
    parser.add_argument("--tests", nargs="+", help="run these test files instead of the nearest")
    options = parser.parse_args()
    results = json.loads(options.results.read_text()) if options.results.exists() else {"usual": {}, "faults": {}}
    for module in ("jax", "optax", "ase.io", "pytest"):  # slow to import: once, before the processes are forked
        importlib.import_module(module)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in COPIED:
            copied = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
            copied(ROOT / part, folder / part)
        for key in options.only:
            _examine_area(key, folder, results, options)
    _summary(results["faults"].values())


def _examine_area(key: str, folder: Path, results: dict, options) -> None:
    area = AREAS[key]
    for fault in choose(area, folder, f"{options.seed} {key}"):
        known = results["faults"].get(fault["name"])
        if known and not (options.again and known["outcome"] == "survived"):
            continue
        tests = options.tests or tests_of(area, fault["file"])
        usual_seconds(folder, set(tests), results["usual"])
        outcome = {"area": key} | examine(folder, fault, tests, results["usual"])
        results["faults"][fault["name"]] = outcome
        options.results.write_text(json.dumps(results, indent=1))
        print(
            f"{outcome['outcome']:9} {outcome['seconds']:6.1f} s  {fault['file']}:{fault['line']} {fault['kind']}",
            flush=True,
        )


def _summary(outcomes) -> None:
    for area in AREAS:
        mine = [x for x in outcomes if x["area"] == area]
        caught = sum(x["outcome"] == "caught" for x in mine)
        print(f"{area:13} {caught:3} of {len(mine):3} caught")
        for x in mine:
            if x["outcome"] != "caught":
                print(f"    {x['file']}:{x['line']} ({x['kind']})", *x["difference"], sep="\n        ")


if __name__ == "__main__":
    main()
