"""A config as a file to begin with: what it says is the config, and every key is explained."""

import dataclasses
from typing import Annotated, Literal

import yaml
from pydantic import Field

from lamjax.config import configuration, template, validate

LONG = "so many words that they do not fit beside the value, and go on below it in the same column, twice as it is"


@configuration
class Part:
    """A group of keys."""

    width: Annotated[float, Field(description="Å")] = 1e-5
    names: tuple[str, ...] = ("a very long name that fills the line", "another very long name that fills the line")
    type: Literal["part"] = "part"


@configuration
class Shared:
    """Keys of several configs."""

    _: dataclasses.KW_ONLY
    seed: int = 0


@configuration
class Whole(Shared):
    """All keys."""

    files: tuple[str, ...]
    part: Annotated[Part, Field(description="a group")] = Part()
    limit: Annotated[float | None, Field(description=LONG)] = None
    model: str | None = None


def test_a_template_is_the_config_and_explains_its_keys():
    config = Whole(("a.xyz",), seed=3)
    text = template(config, "A header\nof two lines.", {"model": "# model: one.lamjax   # or none"})
    assert text.startswith("# A header\n# of two lines.\nfiles: [a.xyz]\n")
    assert validate(yaml.safe_load(text), "template", Whole) == config
    lines = text.splitlines()
    assert all(len(line) <= 120 for line in lines)
    keys = [line.partition(":")[0].strip() for line in lines if ":" in line]
    assert keys == ["files", "part", "type", "width", "names", "limit", "# model", "seed"]  # what is inherited is last
    (start,) = [k for k, line in enumerate(lines) if line.startswith("limit: null")]
    both = lines[start].partition("# ")[2], lines[start + 1].partition("# ")[2]
    assert " ".join(both) == LONG and lines[start].index("#") == lines[start + 1].index("#")
    assert "  width: 1.0e-05" in text and "# Å" in text
