"""The labeller that a command names: a model file, or a calculator with its options."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lamjax import checkpoints
from lamjax.distillation import CalculatorConfig, TeacherConfig
from lamjax.training.config import apply

HELP = (
    f"A model (`small`, {checkpoints.KINDS}), ASE's name of a calculator (emt, tblite), or a "
    "class or function that is imported as package.module:name is, for example tblite.ase:TBLite."
)
OPTION_HELP = "KEY=VALUE, an argument of the calculator's class or function; repeatable."


def labeller_config(
    name: str, options: Sequence[str] = (), head: str | None = None, precision: str | None = None
) -> TeacherConfig | CalculatorConfig:
    """The config that a command's words mean; ValueError for words that do not go together."""
    if Path(name).is_file() or Path(name).suffix in checkpoints.MODELS or _is_model(name):
        if options:
            raise ValueError(f"--option {options[0]} is for calculators; {name} is a model file.")
        chosen: dict[str, Any] = {} if precision is None else {"precision": precision}
        return TeacherConfig(name, head, **chosen)
    if given := [f"--{key} {value}" for key, value in (("head", head), ("precision", precision)) if value is not None]:
        raise ValueError(f"{' and '.join(given)}: that is for a model file; {name} is a calculator.")
    named: dict = {}
    for option in options:
        apply(named, option, "--option")
    return CalculatorConfig(name, named)


def _is_model(name: str) -> bool:
    """Whether it is a shipped model, or a function of a potential with its options: module:pair,n=9."""
    return name in checkpoints.shipped() or "," in name and checkpoints.is_function(name)
