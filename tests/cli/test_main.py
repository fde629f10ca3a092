"""How the command begins: in huge pages, once, and in spite of what the system refuses."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from typer.main import get_command
from typer.testing import CliRunner

import lamjax
from lamjax import __main__ as entry
from lamjax import cli, data, training
from lamjax.cli import cache, failure


class Replaced(Exception):
    """Stands for a process that was replaced."""


@pytest.fixture
def begun(monkeypatch):
    """(program, arguments, environment) of every process that this one was replaced by."""
    calls = []

    def execve(*call):
        calls.append(call)
        raise Replaced

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(entry.platform, "libc_ver", lambda: ("glibc", "2.31"))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "utf8", "-m", "lamjax", "info"])
    return calls


@pytest.mark.parametrize(
    ("tunables", "expected"),
    [(None, "glibc.malloc.hugetlb=1"), ("glibc.malloc.check=1", "glibc.malloc.check=1:glibc.malloc.hugetlb=1")],
)
def test_the_command_begins_anew_with_huge_pages(begun, monkeypatch, tunables, expected):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if tunables:
        monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    with pytest.raises(Replaced):
        entry.with_huge_pages()
    ((program, arguments, environment),) = begun
    assert program == sys.executable and arguments == [program, "-X", "utf8", "-m", "lamjax", "info"]
    assert environment["GLIBC_TUNABLES"] == expected and environment["PATH"] == os.environ["PATH"]


def test_it_does_so_once_and_not_against_the_user(begun, monkeypatch):
    for message in ("glibc.malloc.hugetlb=1", "glibc.malloc.hugetlb=0"):
        monkeypatch.setenv("GLIBC_TUNABLES", message)
        entry.with_huge_pages()
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setattr(entry.platform, "libc_ver", lambda: ("", ""))
    entry.with_huge_pages()
    assert begun == []


def test_a_process_that_cannot_be_replaced_goes_on(begun, monkeypatch):
    asked = []

    def refused(*arguments):
        asked.append(arguments)
        raise PermissionError("no")

    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(os, "execve", refused)
    entry.with_huge_pages()
    assert len(asked) == 1 and "GLIBC_TUNABLES" not in os.environ  # it was tried, and this process is as it was


def test_python_m_is_the_command():
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    run = [sys.executable, "-m", "lamjax"]
    done = subprocess.run([*run, "info"], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "matmul precision" in done.stdout
    done = subprocess.run([*run, "eval"], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "Missing argument" in done.stderr


def test_public_names_are_there_when_asked_for():
    script = "import sys, lamjax; early = 'jax' in sys.modules; lamjax.load; print(early, 'jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == ["False", "True"]
    for name in lamjax.__all__:
        assert getattr(lamjax, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = lamjax.nothing


def test_a_device_that_there_is_not_is_a_message():
    environment = os.environ | {"JAX_PLATFORMS": "rocket", "COLUMNS": "400"}
    environment.pop("LAMJAX_TRACEBACK", None)
    run = [sys.executable, "-m", "lamjax", "info"]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr
    assert "JAX finds no device of the kind that JAX_PLATFORMS=rocket asks for" in done.stdout


@pytest.mark.parametrize("error", [AssertionError(), ValueError("damaged")])
def test_a_missing_device_is_told_whatever_it_led_to(monkeypatch, capsys, error):
    """JAX without CUDA's plugin raises an AssertionError without a text, wherever it is first asked to compute."""

    def fails(*_):
        raise error

    monkeypatch.setattr(cli, "app", fails)
    monkeypatch.delenv("LAMJAX_TRACEBACK", raising=False)
    platforms, devices = jax.config.jax_platforms, jax.devices
    jax.config.update("jax_platforms", "cpu")
    try:
        with pytest.raises((AssertionError, SystemExit)):
            cli.main()
        assert "finds no device" not in capsys.readouterr().out
        monkeypatch.setattr(failure.jax, "devices", fails)
        with pytest.raises(SystemExit):
            cli.main()
    finally:
        jax.config.update("jax_platforms", platforms)
    assert "finds no device" in capsys.readouterr().out.replace("\n", " ") and devices()


@pytest.mark.parametrize(
    "error", [ValueError("no [head] is named x"), training.NonFiniteError("Loss nan is not finite")]
)
def test_what_the_user_can_mend_is_a_message(monkeypatch, capsys, error):
    def fails():
        raise error

    monkeypatch.setattr(cli, "app", fails)
    monkeypatch.delenv("LAMJAX_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    output = capsys.readouterr().out
    assert str(error) in output and "LAMJAX_TRACEBACK" in output and "Traceback" not in output
    monkeypatch.setenv("LAMJAX_TRACEBACK", "1")
    with pytest.raises(type(error)):
        cli.main()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "No space left on device. Make room"),
        (OSError(27, "File too large", "run/a.csv"), "File too large (run/a.csv). Make room"),
        (MemoryError(), "There is not enough memory: MemoryError."),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB"),
            "There is not enough memory: RESOURCE_EXHAUSTED: 9 GB",
        ),
        (
            ImportError('pip install "lamjax[properties]"'),
            'A package is missing or cannot be loaded: pip install "lamjax',
        ),
        (jax.errors.JaxRuntimeError("INTERNAL: a fault"), None),
        (TypeError("a fault"), None),
    ],
)
def test_a_full_disk_too_little_memory_and_a_missing_package_are_told(error, message):
    text = failure.message_of(error)
    assert text is None if message is None else message in text


def loaded_by(*arguments: str, heavy: tuple[str, ...]) -> tuple[str, list[str]]:
    """What a command prints, and which of the `heavy` modules it has imported by its end."""
    script = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('\\nloaded', *sorted(set({heavy}) & set(sys.modules))))\n"
        "from lamjax.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    printed, _, modules = done.stdout.rpartition("\nloaded")
    return printed, modules.split()


# what a figure, a file of structures, a training run or a simulation needs, and no page of help
SLOW = ("matplotlib", "ase.io", "ase.constraints", "ase.spacegroup", "ase.optimize", "ase.lattice", "ase.dft")
SLOW += ("scipy.integrate", "scipy.optimize", "scipy.linalg", "orbax.checkpoint", "jax_md", "e3nn_jax")
TRAINING = ("optax", "lamjax.training", "lamjax.distillation", "lamjax.cli.report")


@pytest.mark.parametrize(
    ("command", "heavy"), [("relax", SLOW + TRAINING), ("show", SLOW + TRAINING), ("md", (*SLOW, "lamjax.cli.report"))]
)
def test_help_of_a_command_loads_no_more_than_its_options_need(command, heavy):
    printed, modules = loaded_by(command, "--help", heavy=heavy)
    assert f"{command} [OPTIONS]" in printed and modules == []


@pytest.mark.parametrize("option", ["--help", "-h", "--version"])
def test_what_the_command_is_told_without_loading_the_library(option):
    """Seconds of imports are spent by the commands that need them."""
    printed, modules = loaded_by(option, heavy=("jax", "numpy", "ase", "optax", "matplotlib"))
    assert modules == []
    if option == "--version":
        assert printed.startswith(f"lamjax {lamjax.__version__}\n")
    else:
        assert all(name in printed for name in (*cli.COMMANDS, "data", "Train on labels"))


def test_commands_are_those_of_their_modules():
    for name, place in cli.COMMANDS.items():
        command = get_command(cli.app).commands[name]
        loaded = command.load()
        assert loaded.name == name and loaded.help.startswith(command.help.removesuffix(".")), place


def test_programs_are_kept_on_disk_by_the_command_alone(monkeypatch):
    """Calls of the same commands in a process of somebody else leave its settings of JAX alone."""
    enabled = []
    monkeypatch.setattr(cache, "enable", lambda: enabled.append(True))
    assert CliRunner().invoke(cli.app, ["train", "--schema"]).exit_code == 0 and enabled == []
    monkeypatch.setattr(sys, "argv", ["lamjax", "train", "--schema"])
    with pytest.raises(SystemExit):
        cli.main()
    assert enabled == [True]


def test_errors_name_the_page_that_helps(tmp_path, capsys):
    """Pages that there are; the innermost part of the library counts, wherever the command began."""
    root = Path(__file__).parents[2]
    assert all((root / page).is_file() for page in (failure.TROUBLE, *failure.PAGES.values()))
    (tmp_path / "x.extxyz").write_text("no number\n")
    calls = {
        "docs/files.md": lambda: data.read(tmp_path / "x.extxyz"),
        "docs/how-to/bring-your-own.md": lambda: lamjax.load("none_of_this:name"),
    }
    for page, call in calls.items():
        with pytest.raises(ValueError) as caught:
            call()
        assert failure.page_of(caught.value) == page
        with pytest.raises(SystemExit) as ended:
            failure.end(caught.value)
        output = capsys.readouterr().out.replace("\n", " ")
        assert ended.value.code == 2 and page in output and failure.TROUBLE in output
    assert failure.page_of(ValueError("raised nowhere")) is None
