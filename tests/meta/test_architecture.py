"""The layers of the library, and what must never be found in its files."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lamjax"
# A module imports only from layers below its own. Inside a package any module may import another one of the same
# package, except where the package is listed in APART: those members are siblings of one layer.
LAYERS = [
    {"units", "numerics", "pytree", "threads", "imports", "factories", "files", "arguments", "summaries", "lattice"},
    {"config", "reports"},
    {"system", "nn"},
    {"neighbors"},
    {"descriptors", "heads", "frames", "shapes"},
    {"potential", "audit"},
    {"domains"},
    {"relaxation", "dynamics", "data", "classical", "edit", "committee", "imported"},
    {"properties"},
    {"losses", "interop"},
    {"checkpoints"},
    {"evaluation"},
    {"training", "calculator"},
    {"distillation"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
APART = {"interop"}
OPTIONAL = {"mlip", "matplotlib", "tensorboardX", "wandb", "mlflow", "deepmd", "torch", "e3nn", "tblite"}
OPTIONAL |= {"phonopy", "seekpath"}
# seconds of imports, which `lamjax relax --help` does not wait for: each where it is used
SLOW = (
    "ase.constraints",
    "ase.filters",
    "ase.io",
    "ase.optimize",
    "orbax.checkpoint",
    "scipy.linalg",
    "scipy.optimize",
)
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path) for path in MODULES}


def imports(path: Path):
    """(name, is inside a function) of every import; `from lamjax import a` is an import of lamjax.a."""
    inside = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside |= {id(child) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(path, node)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield (full if full in NAMES else base), id(node) in inside


def absolute(path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module
    parents = path.relative_to(ROOT).parts[: -node.level]
    return ".".join([*parents, *([node.module] if node.module else [])])


def unit(name: str) -> str:
    """The part of the library that a module belongs to: `neighbors`, `descriptors`, or `interop.deepmd`."""
    parts = name.split(".")[1:]
    return ".".join(parts[:2]) if parts[0] in APART else parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: module_name(p))
def test_imports_go_down(path):
    name = module_name(path)
    if name == "lamjax":
        return  # the public names come from everywhere
    mine = unit(name)
    for imported, _ in imports(path):
        if not imported.startswith("lamjax"):
            continue
        assert imported in NAMES and imported != "lamjax", f"{name} imports {imported}, which is no module of lamjax"
        other = unit(imported)
        inner = mine == other or mine.split(".")[0] == mine and other.startswith(mine + ".")
        assert inner or LEVEL[other.split(".")[0]] < LEVEL[mine.split(".")[0]], f"{name} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: module_name(p))
def test_only_optional_dependencies_are_imported_late(path):
    late = {
        name for name, inside in imports(path) if inside and not f"{name}.".startswith(tuple(f"{s}." for s in SLOW))
    }
    # the command may begin anew, before it has loaded anything
    allowed = {"lamjax.cli"} if module_name(path) == "lamjax.__main__" else set()
    assert {name for name in late if name.split(".")[0] not in OPTIONAL} == allowed


def test_the_layers_can_tell_right_from_wrong():
    assert LEVEL["units"] < LEVEL["potential"] < LEVEL["cli"]
    assert unit("lamjax.interop.deepmd.checkpoint") != unit("lamjax.interop.jax_md")
    assert unit("lamjax.neighbors.host") == unit("lamjax.neighbors.search")
    assert {module_name(p).split(".")[1] for p in MODULES if p.parent != PACKAGE} <= LEVEL.keys()


def test_no_cycle_between_modules():
    graph = {module_name(p): {i for i, _ in imports(p) if i in NAMES and i != module_name(p)} for p in MODULES}
    # a package is made of its members: importing its names from outside is not a cycle of files
    graph = {name: {i for i in others if not name.startswith(i + ".")} for name, others in graph.items()}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            path.append(name)
            for other in sorted(graph[name]):
                visit(other)
            done.add(path.pop())

    for name in sorted(graph):
        visit(name)


def test_jax_config_is_never_touched():
    calls = re.compile(r"config\.update\(|config\.jax_\w+\s*=[^=]|[\"'](?:JAX|XLA)_\w+[\"']\s*\]?\s*[=,]|XLA_FLAGS")
    for guilty in ('jax.config.update("jax_enable_x64", True)', 'os.environ["JAX_PLATFORMS"] = "cpu"'):
        assert calls.search(guilty)
    for path in MODULES:
        if module_name(path) != "lamjax.cli.cache":  # settings of the `lamjax` program, made in its main() alone
            assert not calls.search(path.read_text()), f"{path.name} changes global jax configuration"


def test_importing_changes_nothing_in_jax():
    script = (
        "import jax, os\n"
        "def environment(): return {k: v for k, v in os.environ.items() if k.startswith(('JAX', 'XLA'))}\n"
        "before, flags = dict(jax.config.values), environment()\n"
        "import importlib, sys\n"
        "[importlib.import_module(name) for name in sys.argv[1:]]\n"
        "changed = {k for k, v in jax.config.values.items() if before.get(k, v) != v}\n"
        "assert not changed, changed\n"
        "assert environment() == flags\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()  # else jax.distributed came too late\n"
    )
    names = sorted(NAMES - {"lamjax.__main__", "lamjax.cli.__main__"})
    result = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_jax_releases_with_wrong_numbers_are_excluded():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name in ("jax", "jaxlib"):
        (line,) = [d for d in project["dependencies"] if re.match(rf"{name}[><=!]", d)]
        assert "!=0.10.2" in line and ">=0.10.0" in line


def tracked() -> list[Path]:
    """The text files of the repository."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:  # no git here, as in an unpacked archive
        names = [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file() and not _hidden(p)]
    else:
        names = listed.stdout.split("\0")
    kinds = {".py", ".md", ".toml", ".json", ".yaml", ".yml", ".sh", ".txt", ""}
    return [ROOT / n for n in names if n and (ROOT / n).is_file() and Path(n).suffix in kinds]


def _hidden(path: Path) -> bool:
    parts = path.relative_to(ROOT).parts
    return any(p.startswith(".") and p != ".ci" or p in {"build", "dist", "__pycache__"} for p in parts)


def test_no_file_names_a_place_on_one_machine():
    place = re.compile(r"(?<![\w./~$}\-])/(?:home|root|work|Users|mnt|scratch|tmp)/[\w.]")
    for path in tracked():
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(errors="ignore").splitlines(), 1):
            assert not place.search(line), f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"


def test_files_are_short():
    for path in MODULES:
        assert len(path.read_text().splitlines()) <= 450, path
