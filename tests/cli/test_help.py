"""What the command says of itself: the workflow in order, completion, no colours where none are wanted."""

import re

import pytest
from typer.testing import CliRunner

from lamjax import checkpoints, cli

ORDER = "demo info data show eval report convert train finetune finetune-structures finetune-properties".split()
ORDER += ["distill", "explore", "label", "relax", "properties", "md"]


def shown(*arguments, **environment) -> str:
    done = CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "80", "TERM": "dumb", **environment})
    return done.output


@pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",)])
def test_help_shows_every_command_in_the_order_in_which_one_needs_them(arguments):
    output = shown(*arguments)
    result = re.findall(r"^│ ([a-z][a-z-]*)  +[A-Z]", output, flags=re.MULTILINE)
    assert result == ORDER
    headings = [output.index(heading) for heading in cli.WORKFLOW]
    assert headings == sorted(headings) and max(map(len, output.splitlines())) <= 80


def test_every_command_stands_in_the_workflow_once():
    named = [name for names in cli.WORKFLOW.values() for name in names]
    assert sorted(named) == sorted([*cli.COMMANDS, "data"])


@pytest.mark.parametrize("command", ["show", "eval", "relax", "md", "properties", "distill", "explore", "label"])
def test_every_kind_of_model_file_is_named_where_a_model_is_meant(command):
    output = " ".join(shown(command, "--help", COLUMNS="400").split())
    assert checkpoints.KINDS in output, output


def test_names_of_commands_are_completed():
    asked = {"_LAMJAX_COMPLETE": "complete_bash", "COMP_WORDS": "lamjax fine", "COMP_CWORD": "1"}
    done = CliRunner().invoke(cli.app, [], env=asked, prog_name="lamjax")
    assert done.output.split() == ["finetune", "finetune-structures", "finetune-properties"]


def test_no_colour_is_written_where_none_is_wanted():
    assert "\x1b[3" not in shown("-h", NO_COLOR="1", FORCE_COLOR="1")
