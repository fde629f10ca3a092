"""The models that the runs begin from: the small one that comes with lamjax, or the public weights of Nequix."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments import workflow
from experiments.relaxation import methods
from experiments.relaxation.methods import Effort
from experiments.relaxation.sets import MGO, SETS, RelaxationSet

HERE = Path(__file__).parent
SMALL, NEQUIX = "small", "nequix"
STUDIES = ("methods", "shares", "settings", "pairs")
FEW = {"si_defects": "hybrid", "hbn": "Newton", "gase": "Newton"}  # taught by few pairs, and in which way


class Base(NamedTuple):
    """A model, and what is done with it."""

    name: str
    model: str  # what `lamjax.load` takes
    digest: str  # SHA-256 of its file
    sets: Mapping[str, RelaxationSet]
    effort: Effort
    report: Path  # where results.json, tables and plots go
    few: Mapping[str, str]  # sets of the study "pairs", and the method that learns from few
    studies: tuple[str, ...]
    quick: bool = False

    @property
    def option(self) -> str:
        """As it is named on the command line, without folders."""
        return self.name if self.name == SMALL else f"{self.name}:{Path(self.model).name}"


def read_base(text: str, quick: bool = False) -> Base:
    """The base of `--base`; SystemExit for what is none."""
    name, _, file = text.partition(":")
    if text == SMALL:
        base = Base(SMALL, SMALL, workflow.shipped(), SETS, methods.FULL, HERE, FEW, STUDIES)
    elif name == NEQUIX and Path(file).is_file():
        base = Base(NEQUIX, file, workflow.digest(Path(file)), LARGE, STRONG, HERE / NEQUIX, _FEW, ("methods", "pairs"))
    else:
        raise SystemExit(
            f"--base {text}: there is no such base. Say small, or nequix:PATH with the path of nequix-mp-1.nqx, a file "
            "of the nequix project (weights CC BY 4.0) that does not come with lamjax."
        )
    return base._replace(effort=methods.QUICK, quick=True) if quick else base


# An evaluation of 32 atoms takes a tenth of a second on one core: runs are fewer and shorter than the small model's.
STRONG = Effort({"fmax": 0.02, "max_steps": 200}, 60, {})
_WAYS: dict[str, dict[str, Any]] = {
    "BPTT": {"relax": {"adjoint": {"steps": 10}}},
    "hybrid": {"relax": {"max_steps": 60, "adjoint": {"window": 5}}},
    "implicit": {"relax": {"max_steps": 60}},
}
_SETTINGS: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 2,
    "max_programs": 1,
    "schedule": {"start_lr": 2e-4},
    "replay": {"weight": 0.03, "batch_size": "auto:32"},
}


def _strong(dataset: RelaxationSet, methods: tuple[str, ...], most: tuple[int, int] = (0, 0), epochs: int = 1) -> Any:
    return dataset._replace(
        head="Default",
        methods=methods,
        settings=_SETTINGS | {"epochs": epochs},
        most=most,
        every=4,
        objectives=_WAYS,
        keeping={},
        kept=None,
        shared=(),
    )


_FEW = {"si_defects": "Newton"}
_LEARNED = ("zero force", "Newton", "BPTT", "hybrid")
LARGE = {
    "si_defects": _strong(SETS["si_defects"], ("forces", *_LEARNED)),
    "hbn": _strong(SETS["hbn"], ("Newton", "BPTT"), most=(5, 4), epochs=2),
    "mgo": _strong(MGO, ("forces", "Newton", "BPTT"), epochs=3),
}
