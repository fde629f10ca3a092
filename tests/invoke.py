"""`lamjax` as a user types it, in the process of the test."""

from unittest import mock

from typer.testing import CliRunner

from lamjax.cli import app
from lamjax.reports.console import console


def invoke(*arguments, **environment: str) -> tuple[int, str, BaseException | None]:
    """(exit code, output, exception) of a command; `environment` as COLUMNS="120"."""
    # a console reads COLUMNS when it is made, which may be in an earlier test
    with mock.patch.object(console, "_width", int(environment.get("COLUMNS", 80))):
        result = CliRunner().invoke(app, [str(a) for a in arguments], env=environment)
    return result.exit_code, result.output, result.exception
