"""The examples of the documentation run as they stand; its pages name commands, options and files that there are."""

import re
from pathlib import Path
from textwrap import dedent

import pytest
import typer.main

from lamjax import cli
from lamjax.cli.keys import KeyCommand
from lamjax.training import config, structures_config

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md"))
EXAMPLES = [path for path in PAGES if "```python\n" in path.read_text()]
# the same programs, sooner
SOONER = {"Unrolled(60)": "Unrolled(2)", "Unrolled(3)": "Unrolled(2)"}
SETTINGS = {
    "relax_many": {"ELEMENTS": ["Al", "Si"], "STRETCHED": (1.0, 1.02), "FMAX": 10.0},
    "finetune_relaxations": {"CELLS": 5, "HELD_OUT": 1, "STEPS": 2, "EPOCHS": 1},
    "deepmd_and_lammps": {"FRAMES": 4, "EPOCHS": 1},
    "distil_and_simulate": {"NET": (2, 4), "FRAMES": 10, "EPOCHS": 1, "MD_STEPS": 10, "REPEAT": 1},
    "own_potential": {"MD_STEPS": 20, "TRAINING_STEPS": 2},
}
# the files and models of the examples are small: what does not converge is named
pytestmark = pytest.mark.filterwarnings("ignore:Left out|.*not relaxed|.*did not converge|.*looks at the nearest")


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS))


@pytest.mark.parametrize("page", EXAMPLES, ids=name_of)
def test_examples_of_a_page_run(page, folder):
    """An example that uses a name or an argument that is not there any more would raise."""
    code = "\n".join(map(dedent, re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)))
    for slow, fast in SOONER.items():
        code = code.replace(slow, fast)
    exec(compile(code, page.name, "exec"), {})


def test_every_tutorial_is_run():
    assert {path.stem for path in (DOCS / "tutorials").glob("*.py")} == SETTINGS.keys()


LONG = {"finetune_relaxations", "distil_and_simulate", "own_potential"}  # a gradient through a relaxation, simulations
RUNS = [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in sorted(SETTINGS)]


@pytest.mark.parametrize("tutorial", RUNS)
def test_tutorials_run(tutorial, folder):
    code = (DOCS / "tutorials" / f"{tutorial}.py").read_text()
    for name, value in SETTINGS[tutorial].items():
        code, n = re.subn(rf"^{name} = .*$", f"{name} = {value!r}", code, flags=re.MULTILINE)
        assert n == 1, f"{tutorial} has no setting {name}"
    exec(compile(code, f"{tutorial}.py", "exec"), {"__name__": "tutorial"})


def said_commands() -> list[tuple[str, str]]:
    """(page, command line) of every call of lamjax in a block of a page, the README or a tutorial, or in backticks."""
    commands = []
    for page in (*PAGES, DOCS.parent / "README.md", *(DOCS / "tutorials").glob("*.py")):
        text = re.sub(r"^# ?", "", page.read_text(), flags=re.MULTILINE) if page.suffix == ".py" else page.read_text()
        blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL))
        lines = re.findall(r"^ *(lamjax .*)$", blocks, flags=re.MULTILINE) + re.findall(r"`(lamjax [^`\n]*)`", text)
        commands += [(page.name, line) for line in lines]
    return commands


def command_of(words: list[str]):
    """The subcommand that is called; None if there is none of this name."""
    command = typer.main.get_command(cli.app)
    for word in words[1:]:
        if not hasattr(command, "list_commands"):
            break
        command = command.get_command(command.make_context("lamjax", [], resilient_parsing=True), word)
    return command.load() if hasattr(command, "load") else command


def accepts(command, option: str) -> bool:
    """Whether it is an option of the command, or a key of its config that the command takes as one."""
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    key = option.strip("-").replace("-", "_")
    templates = structures_config.TEMPLATE + config.TEMPLATE + (command.help or "").replace("-", "_")
    is_key = isinstance(command, KeyCommand) and re.search(rf"\b{re.escape(key.rpartition('.')[2])}\b", templates)
    return option in known | {"--help", "-h", "--version"} or bool(is_key)


def test_commands_that_the_pages_name_exist_with_their_options():
    commands = said_commands()
    assert len(commands) > 60
    for page, line in commands:
        words = line.partition("#")[0].split()
        if len(words) < 2 or not words[1].islower():  # `lamjax COMMAND`
            continue
        command = command_of(words)
        assert command is not None, f"{page}: {line}: no such command"
        wrong = [word for word in words if re.fullmatch(r"--?[a-z][a-z_.-]*", word) and not accepts(command, word)]
        assert not wrong, f"{page}: {line}: no option {wrong}"


def test_links_between_pages_and_to_the_repository_are_files():
    """So that they work in the repository as well; `mkdocs build --strict` checks those of the site, made pages too."""
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
