"""Commands that are made from a config: every key of it is an option too, --steps 500 for --set steps=500."""

import json
from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand

from lamjax.cli.reading import elements_of

# true unless "false" follows
FLAGS = ("variable_cell", "learn_minimiser", "plots", "tensorboard", "mix_levels", "use_huber")


class KeyCommand(TyperCommand):
    """A command that takes what is none of its options as a key of its config, for --set."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {option for one in self.get_params(ctx) for option in (*one.opts, *one.secondary_opts)}
        return super().parse_args(ctx, as_changes(args, known))


def as_changes(args: Iterable[str], known: Iterable[str]) -> list[str]:
    """The arguments with each unknown option as a --set; one that is given twice is a list."""
    rest, left, options = [], list(args), {}
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if word == "--":
            return [*rest, *_changes(options), word, *left]
        if not word.startswith("--") or name in known:
            rest.append(word)
            continue
        key = name[2:].replace("-", "_")
        if not equals:
            flag = key.rpartition(".")[2] in FLAGS and left[:1] not in (["true"], ["false"])
            value = "true" if flag or not left or left[0].startswith("--") else left.pop(0)
        options.setdefault(key, []).append(value)
    return [*rest, *_changes(options)]


def _changes(options: dict[str, list[str]]) -> list[str]:
    changes = []
    for key, values in options.items():
        if key == "elements":  # as other commands call it
            key, values = "type_map", [json.dumps(elements_of(",".join(values)))]
        changes += ["--set", f"{key}={values[0] if len(values) == 1 else json.dumps(values)}"]
    return changes


def strings(paths: Iterable[Any]) -> list[str]:
    """The names of files."""
    return [str(path) for path in paths]
