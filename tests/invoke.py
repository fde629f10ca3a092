"""`lamjax` as a user types it, in the process of the test."""

from typer.testing import CliRunner

from lamjax.cli import app


def invoke(*arguments, **environment: str) -> tuple[int, str, BaseException | None]:
    """(exit code, output, exception) of a command; `environment` as COLUMNS="60", where a terminal is narrow."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env=environment)
    return result.exit_code, result.output, result.exception
