"""Options that are made into one value stand where the command has that value, with their defaults."""

import inspect

from lamjax.cli.option_groups import with_groups


def test_a_value_is_made_of_its_options():
    calls = []

    def size(width: int = 2, height: int = 3) -> tuple[int, int]:
        return width, height

    @with_groups(size=size)
    def command(name: str, *, size: tuple[int, int], color: str = "red") -> None:
        """Draw."""
        calls.append((name, size, color))

    parameters = inspect.signature(command).parameters
    assert list(parameters) == ["name", "width", "height", "color"] and command.__doc__ == "Draw."
    assert parameters["height"].default == 3 and parameters["name"].default is inspect.Parameter.empty
    command("a")
    command("b", 4, color="blue")
    command(name="c", height=5)
    assert calls == [("a", (2, 3), "red"), ("b", (4, 3), "blue"), ("c", (2, 5), "red")]
