"""The commands as a user types them, in processes of their own where the outcome is what a shell sees."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import ase.build
import ase.io
import pytest
from typer.testing import CliRunner

import lamjax
from lamjax.cli import app

HERE = Path(__file__).parent
WATER = HERE.parent / "fixtures" / "multitask" / "single_water.dp"
ASSETS = Path(lamjax.__file__).parent / "assets" / "demo"


def run(*arguments):
    """The command in this process; (exit code, output)."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.output


@pytest.mark.parametrize(
    "command",
    [
        "",
        "demo",
        "train",
        "distill",
        "explore",
        "label",
        "eval",
        "relax",
        "properties",
        "data",
        "data check",
        "show",
        "info",
    ],
)
def test_help_names_what_a_command_does(command):
    code, output = run(*command.split(), "--help")
    assert code == 0 and "Usage: " in output


def test_info_prints_versions_and_devices():
    code, output = run("info")
    assert code == 0 and lamjax.__version__ in output and "devices" in output


def test_show_prints_heads_elements_and_settings():
    code, output = run("show", WATER)
    assert code == 0
    for part in ("Default", "dpa2", "repformer.nlayers", "parameters"):
        assert part in output


def test_mendable_errors_are_one_message_and_exit_code_two(tmp_path):
    for arguments, message in (
        (["show", "nowhere.lamjax"], "nowhere.lamjax: no such model file"),
        (["relax", WATER, "nowhere.extxyz"], "nowhere.extxyz"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", "from lamjax.cli import main; main()", *map(str, arguments)],
            capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert message in done.stdout and "Traceback" not in done.stdout + done.stderr


def test_data_check_says_what_a_set_holds():
    code, output = run("data", "check", ASSETS / "si_defects_heldout.extxyz.gz")
    assert code == 0 and "363" in output and "Si" in output


@pytest.mark.slow
def test_demo_writes_what_it_promises(tmp_path):
    command = shutil.which("lamjax") or pytest.fail("the command lamjax is not installed")
    done = subprocess.run(
        [command, "demo", "--epochs", "1", "--out", "demo"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with open(tmp_path / "demo" / "errors.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert all(float(row["dq_before"]) > 0 for row in rows)
    assert any(row["dq_before"] != row["dq_after"] for row in rows)
    assert (tmp_path / "demo" / "demo.png").read_bytes()[:4] == b"\x89PNG"
    assert len(ase.io.read(tmp_path / "demo" / "relaxed.extxyz", ":")) == 24
    lamjax.load(tmp_path / "demo" / "tuned.lamjax")
    assert "median Dq" in done.stdout and "force RMSE" in done.stdout


@pytest.mark.parametrize("command", ["train", "label", "explore", "relax"])
def test_help_fills_80_columns_and_cuts_nothing(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "80", "TERM": "dumb"})
    assert result.exit_code == 0 and "…" not in result.output
    prose = result.output.partition("Arguments")[0].splitlines()
    for line, following in zip(prose, prose[1:], strict=False):
        if line.strip() and following.strip():  # within a paragraph a line ends where the next word has no place
            assert len(line.rstrip()) + 1 + len(following.split()[0]) > 78, line
