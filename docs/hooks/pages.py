"""Pages made when the site is built: tutorials, the Python reference, commands, files of the repository."""

import ast
import os
import re
import sys
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))

import commands_page  # noqa: E402

COPIED = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md", "security.md": "SECURITY.md"}
PAGES = {source: name for name, source in COPIED.items()}
TREES = ("benchmarks", "experiments")  # their READMEs and pictures are pages of the site, under their own paths
MODULES = {
    "lamjax": "The names that most scripts need.",
    "system": "Atoms in a cell, and the way from and to ASE.",
    "lattice": "What follows from a cell: images, reduction, nearest images, strain.",
    "neighbors": "Neighbour lists.",
    "descriptors": "What an atom sees, as numbers: DPA-1, DPA-2, DPA-3, NequIP.",
    "heads": "From the numbers of an atom to its energy.",
    "potential": "Descriptor and heads as one potential.",
    "relaxation": "Relaxations and their derivatives.",
    "domains": "One large structure over several devices.",
    "dynamics": "Molecular dynamics.",
    "classical": "Lennard-Jones, Morse, and pair potentials of your own.",
    "committee": "Several models of one kind, and how far they differ.",
    "edit": "Heads, elements and tables of a trained model.",
    "data": "From files to batches.",
    "losses": "Functions (params, batch) -> (scalar, metrics).",
    "interop.jax_md": "Any potential in jax-md's conventions, and its energy functions as potentials.",
    "interop.nequix": "Nequix's weights.",
    "checkpoints": "Model files.",
    "training": "States, steps, schedules.",
    "distillation": "Rounds of explore, label, select, train.",
    "calculator": "Any potential in ASE.",
    "properties": "Lattice, elastic tensor, phonons, energies of relaxed structures; differentiable.",
    "units": "Constants, and conversions of stress and virial.",
    "pytree": "Operations on whole pytrees.",
}


def on_config(config):
    """The Python reference in the navigation: a page a module."""
    pages = [{full(module): f"reference/{page_name(module)}.md"} for module in MODULES]
    for tab in config.nav:
        for entry in next(iter(tab.values())):
            if isinstance(entry, dict) and "Python" in entry:
                entry["Python"] = ["reference/index.md", *pages]
    return config


def on_files(files, config):
    """All pages of the site: those of docs/, and the generated ones."""
    for script in sorted((ROOT / "docs" / "tutorials").glob("*.py")):
        page = tutorial(script.read_text(), script.name)
        files.append(File.generated(config, f"tutorials/{script.stem}.md", content=page))
    for name, page in reference().items():
        files.append(File.generated(config, f"reference/{name}.md", content=page))
    files.append(File.generated(config, "commands.md", content=commands_page.page()))
    for name, source in COPIED.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text()))
    for tree in TREES:
        for path in sorted((ROOT / tree).rglob("*")):
            if path.name == "README.md" or path.suffix == ".png":
                files.append(File(str(path.relative_to(ROOT)), str(ROOT), config.site_dir, False))
    return files


def on_page_markdown(markdown: str, page, files, **_) -> str:
    """Links to files of the repository lead to their pages, or, where they are no page, become their paths."""
    folder = Path(page.file.src_uri).parent

    def led(match: re.Match) -> str:
        text, target = match[1], match[2]
        path, hash_, anchor = target.partition("#")
        inside = os.path.normpath(folder / path)
        outside = os.path.normpath(Path("docs") / folder / path)  # docs/ is a folder of the repository
        script = inside.removesuffix(".py") + ".md"  # the page of a tutorial
        for way in (script, PAGES.get(outside, outside), inside):
            for there in (way, f"{way}/README.md"):
                if files.get_file_from_path(there):
                    return f"[{text}]({os.path.relpath(there, folder)}{hash_}{anchor})"
        for way in (outside, inside):
            if (ROOT / way).exists() and not way.startswith("docs/"):
                return f"{text} (`{way}`)"
        return match[0]

    return re.sub(r"(?<!!)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)\s]+)\)", led, markdown)


def on_post_page(output: str, page, **_) -> str:
    """Search without a network: the theme would fetch this script where a page is opened from a folder."""
    own = os.path.relpath("assets/iframe-worker.js", Path(page.file.dest_uri).parent)
    return output.replace("https://unpkg.com/iframe-worker/shim", own)


def tutorial(script: str, name: str) -> str:
    """The page of a py-percent script: its text cells as they are, its code in blocks."""
    parts = []
    for cell in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        head, _, body = cell.partition("\n")
        if "[markdown]" in head:
            parts.append("\n".join(re.sub(r"^# ?", "", line) for line in body.strip().splitlines()))
        elif body.strip():
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join([*parts, f"This page is the script `docs/tutorials/{name}`, which the tests run.", ""])


def reference() -> dict[str, str]:
    """The pages of the Python reference, by name: an index, and a page a module with every public name."""
    names = {module: public_names(module) for module in MODULES}
    lines = ["# Python reference", "", "| module | what is in it | names |", "|---|---|---|"]
    for module, what in MODULES.items():
        shown = ", ".join(f"`{name}`" for name in names[module])
        lines.append(f"| [{full(module)}]({page_name(module)}.md) | {what} | {shown} |")
    pages = {"index": "\n".join(lines) + "\n"}
    for module, what in MODULES.items():
        blocks = [f"::: {origin(full(module), name)}" for name in names[module]]
        pages[page_name(module)] = "\n\n".join([f"# {full(module)}", what, *blocks, ""])
    return pages


def full(module: str) -> str:
    return module if module == "lamjax" else f"lamjax.{module}"


def page_name(module: str) -> str:
    return module.replace(".", "-")


def public_names(module: str) -> list[str]:
    """What a module offers: what its __init__ imports as itself, or what it defines without an underscore."""
    place = ROOT.joinpath("lamjax", *([] if module == "lamjax" else module.split(".")))
    package = place.is_dir()
    stub = place / "__init__.pyi"
    path = stub if stub.exists() else place / "__init__.py" if package else place.with_suffix(".py")
    names = []
    for node in ast.parse(path.read_text()).body:
        if package and isinstance(node, ast.ImportFrom):
            names += [a.name for a in node.names if a.asname == a.name and not is_module(place, node, a.name)]
        elif not package and isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            names.append(node.name)
        elif not package and module == "units" and isinstance(node, ast.Assign):
            names += [t.id for t in node.targets if isinstance(t, ast.Name) and t.id.isupper()]
    return names


def origin(module: str, name: str) -> str:
    """Where a name is defined: a function may be called as the module that it is in, and the module is not meant."""
    place = ROOT.joinpath(*module.split("."))
    files = [path for path in (place / "__init__.pyi", place / "__init__.py") if path.exists()]
    for node in ast.parse(files[0].read_text()).body if files else ():
        if isinstance(node, ast.ImportFrom) and any(alias.asname == name for alias in node.names):
            above = module if node.level else ""
            return origin(".".join(filter(None, (above, node.module))), name)
    return f"{module}.{name}"


def is_module(place: Path, node: ast.ImportFrom, name: str) -> bool:
    """True for `from . import name`, a module with a page of its own."""
    return node.module is None and ((place / name).is_dir() or (place / f"{name}.py").exists())
