"""Settings of a distillation: labeller, student, exploration, trust levels and when it ends."""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field

from lamjax.config import configuration, template
from lamjax.data import frames_per_batch
from lamjax.losses import LabelLossConfig
from lamjax.potential import PotentialConfig
from lamjax.training import OptimizerConfig, ScheduleConfig
from lamjax.training.loggers import LoggerName
from lamjax.training.run_config import Decay, LabelKeys, PrecisionConfig


@configuration
class TeacherConfig:
    """A potential labels: of a file, or of a function that makes it."""

    model: str
    head: str | None = None
    precision: Literal["float32", "float64"] = "float32"
    batch_size: Annotated[int | str, Field(description="a number of structures, or auto:N, lists of about N atoms")] = (
        "auto:256"
    )
    type: Literal["potential"] = "potential"


@configuration
class CalculatorConfig:
    """An ASE calculator labels: ASE's name for it, "tblite", or "package.module:factory", which is imported.

    Code is imported because the user's own config or command names it, and for no other reason: model files hold no
    such name, and the config that a run has stored is compared with the user's, never acted on.
    """

    name: str
    options: Annotated[dict[str, Any], Field(description="keyword arguments of the class or function")] = field(
        default_factory=dict
    )
    reuse: Annotated[bool | None, Field(description="one instance for many frames; None: if it is imported")] = None
    type: Literal["calculator"] = "calculator"


@configuration
class FilesConfig:
    """Labels come from outside: structures are written to a file, their labels are read from another."""

    type: Literal["files"] = "files"


LabellerConfig = Annotated[TeacherConfig | CalculatorConfig | FilesConfig, Discriminator("type")]


@configuration
class StudentConfig(PrecisionConfig):
    """The student and its training: keys of `lamjax train`."""

    model: PotentialConfig | None = None
    base: Annotated[
        str | None, Field(description="instead of model: fine-tune a stored one; head: NAME. Members get fresh heads")
    ] = None
    head: str | None = None
    loss: LabelLossConfig = LabelLossConfig(start_pref_v=0.02, limit_pref_v=1.0)
    hessian: Annotated[
        float, Field(ge=0, description="(Å⁴/eV²) of the squared difference of Hessian-vector products")
    ] = 0.0
    schedule: ScheduleConfig = ScheduleConfig(stop_lr=1e-5, decay_steps=500)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema_decay: Decay = None
    steps: Annotated[
        int, Field(ge=1, description="of every round; each round goes on from the members of the last one")
    ] = 10_000
    batch_size: Annotated[int | str, Field(description="a number of structures, or auto:N, lists of about N atoms")] = (
        "auto"
    )
    max_programs: Annotated[int, Field(ge=1, description="shapes of arrays; kept from round to round")] = 2

    def __post_init__(self) -> None:
        if (self.model is None) == (self.base is None):
            raise ValueError("Give either `model` (a fresh student) or `base` (a stored one to fine-tune), not both.")
        frames_per_batch(1, self.batch_size)


@configuration
class ExploreConfig:
    """How structures are generated from the starts: perturbations, relaxations, dynamics."""

    temperatures: Annotated[
        tuple[float, ...], Field(description="K; a simulation of each start at each temperature (and pressure)")
    ] = (300.0,)
    pressures: Annotated[tuple[float, ...], Field(description="GPa; none: constant volume")] = ()
    timestep: Annotated[float, Field(description="fs")] = 1.0
    steps: Annotated[int, Field(ge=1, description="of a simulation")] = 1000
    every: Annotated[int, Field(ge=1, description="steps between the frames that are looked at")] = 20
    simulations: Annotated[
        int | None, Field(ge=0, description="per round, drawn among starts, temperatures and pressures; null: all")
    ] = None
    perturbed: Annotated[int, Field(ge=0, description="per start: random displacements and strain")] = 10
    displacement: Annotated[float, Field(ge=0, description="Å, standard deviation of a component")] = 0.05
    strain: Annotated[float, Field(ge=0, description="standard deviation of a component")] = 0.02
    relaxations: Annotated[
        int, Field(ge=0, description="per start: perturbed structures that are relaxed for a while")
    ] = 0
    relax_steps: Annotated[int, Field(ge=1)] = 20
    relax_every: Annotated[
        int | None, Field(ge=1, description="steps between the frames that are looked at; null: only where it ends")
    ] = None
    relax_cell: Annotated[bool, Field(description="whether the cell relaxes too")] = False
    substitutions: Annotated[
        int, Field(ge=0, description="further starts per start: elements replaced by similar ones, the volume scaled")
    ] = 0
    similar: Annotated[
        int, Field(ge=1, description="places in the group (d and f elements: or the row) that these may be away")
    ] = 1

    def __post_init__(self) -> None:
        if not self.timestep > 0 or not all(t > 0 for t in self.temperatures):
            raise ValueError(
                f"timestep and temperatures must be positive, got {self.timestep}, {list(self.temperatures)}."
            )


@configuration
class TrustConfig:
    """Levels of the largest force deviation in a frame (eV/Å): what is between is labelled, what is above is not."""

    lower: float = 0.05
    upper: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.lower < self.upper:
            raise ValueError(
                f"lower ({self.lower}) must be below upper ({self.upper}), and not negative: frames between the two "
                "levels are labelled. Exchange them?"
            )


@configuration
class LabelConfig:
    """How many frames a round labels: `most` to learn from, `fresh` ones, drawn at random, to measure with."""

    most: Annotated[int, Field(ge=1, description="frames a round to learn from")] = 100
    fresh: Annotated[int, Field(ge=1, description="frames a round to measure with")] = 20


@configuration
class EnoughConfig:
    """A round is the last one if it finds all of these."""

    deviation: Annotated[float, Field(description="eV/Å, below which 95 % of the explored frames are")] = 0.1
    force: Annotated[float, Field(description="eV/Å, RMSE of a component on fresh frames")] = 0.05
    energy: Annotated[float, Field(description="eV/atom, RMSE on fresh frames")] = 0.002


@configuration
class DistillConfig(LabelKeys):
    """A distillation, or active learning if the labeller is no potential."""

    student: Annotated[
        StudentConfig, Field(description="model, loss, schedule, optimizer, ... as in `lamjax train --template`")
    ]
    start: Annotated[tuple[str, ...], Field(description="where exploration begins: every frame of these files")]
    labeller: Annotated[LabellerConfig | None, Field(description="None: a script gives its own to `prepare`")] = None
    initial: Annotated[
        tuple[str, ...], Field(description="labelled frames to learn from as well, from the first round on")
    ] = ()
    members: Annotated[int, Field(description="of the committee, trained and asked together")] = 4
    rounds: Annotated[int, Field(ge=1, description="at most; round 0 begins with perturbed structures alone")] = 8
    explore: ExploreConfig = ExploreConfig()
    trust: Annotated[
        TrustConfig, Field(description="eV/Å, largest force deviation in a frame: labelled if between")
    ] = TrustConfig()
    label: Annotated[
        LabelConfig, Field(description="frames per round to learn from, and to measure with: those are never learned")
    ] = LabelConfig()
    enough: Annotated[
        EnoughConfig, Field(description="eV/Å (95 % of frames), eV/Å and eV/atom (RMSE on fresh frames)")
    ] = EnoughConfig()
    seed: int = 0
    output: Annotated[str, Field(description="folder with all rounds and the student")] = "distilled"
    logger: Annotated[tuple[LoggerName, ...], Field(description="where records go, beside the tables")] = ("csv",)

    @property
    def files(self) -> list[str]:
        """Every file that a distillation reads: models and data."""
        models = (self.student.base, getattr(self.labeller, "model", None))
        return [*self.start, *self.initial, *(path for path in models if path is not None)]

    def __post_init__(self) -> None:
        if not self.start:
            raise ValueError("`start` names no file. List structures where exploration begins: [structures.extxyz].")
        if self.members < 2:
            raise ValueError(f"members is {self.members}; a committee that can disagree needs at least 2.")


_LABELLER = """\
labeller: {type: potential, model: teacher.lamjax}     # head: NAME where there are several; precision: float32
# labeller: {type: calculator, name: tblite, options: {method: GFN2-xTB}}   # any ASE calculator by its name there
# labeller: {type: calculator, name: "chgnet.model.dynamics:CHGNetCalculator"}   # or imported; reuse: true, false
# labeller: {type: files}          # the command ends and says which file it waits for
"""
_STUDENT = """\
student:                           # model, loss, schedule, optimizer, ... as in `lamjax train --template`
  model:
    elements: [O, H]
    descriptor: {type: dpa1, rcut: 6.0, sel: 120, neuron: [25, 50, 100], axis_neuron: 16}   # without attention
    heads: [[Default, {neuron: [240, 240, 240]}]]
  # base: model.lamjax             # instead of model: fine-tune a stored one; head: NAME. Members get fresh heads
  loss: {start_pref_e: 0.02, limit_pref_e: 1.0, start_pref_f: 1000.0, limit_pref_f: 1.0,
         start_pref_v: 0.02, limit_pref_v: 1.0}
  hessian: 0.0                     # prefactor of Hessian-vector products of a teacher that is a potential, e.g. 0.1
  schedule: {type: exp, start_lr: 0.001, stop_lr: 1.0e-5, decay_steps: 500}
  optimizer: {name: adam}
  ema_decay: null                  # for example 0.99: a running mean of the parameters is what a round ends with
  steps: 10000                     # of every round; each round goes on from the members of the last one
  batch_size: auto                 # a number of structures, or auto:N, lists of about N atoms
  max_programs: 2                  # shapes of arrays; kept from round to round
  precision: float32
"""
TEMPLATE = template(
    DistillConfig(StudentConfig(base="model.lamjax"), ("structures.extxyz",)),
    "lamjax distill: keys and their defaults; a key may be left out. --set explore.steps=500 changes one.",
    {"labeller": _LABELLER, "student": _STUDENT},
)
