"""The relaxations that the experiments learn from and are measured on."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import numpy as np

from experiments import workflow
from experiments.workflow import DATA
from lamjax import checkpoints
from lamjax.evaluation.errors import predictions
from lamjax.system import to_ase

KEPT_COPIES = 6  # of each structure whose forces are to stay
DEMO = Path("../../lamjax/assets/demo")


class RelaxationSet(NamedTuple):
    """DFT relaxations, the head of the small model that is to relax like them, and data to see what that costs."""

    level: str
    files: tuple[Path, ...]  # whole trajectories, below experiments/data
    held_out: tuple[str, ...]  # for each seed a regular expression of the relaxations that are not trained on
    variable_cell: bool
    earlier: Path  # labelled frames of the kind that the base was trained on: replayed, so that it is not forgotten
    elsewhere: Path  # others of that kind, never trained on: forces there tell what was forgotten
    settings: dict[str, Any]  # of the training on structures
    methods: tuple[str, ...]  # that are compared
    head: str = "nequix"  # of the small model
    keeping: dict[str, Any] = {}  # other settings of "both, the base kept", and the objective of its second half
    kept: Path | None = None  # structures on which the base's own forces are to stay; None: labels of `earlier` do it
    shared: tuple[str, ...] = ()  # of these also the models between the base and what was trained
    labelled: bool = True  # steps have energies and forces; else there are starts and ends alone
    most: tuple[int, int] = (0, 0)  # relaxations to learn from, and held out, of a seed; 0: all there are
    every: int = 1  # of so many labelled steps one is learned, and measured
    objectives: dict[str, dict[str, Any]] = {}  # what single methods do otherwise
    base: Path = Path()  # written by `with_bases`


MATERIALS = {"earlier": Path("materials_pbeu/train"), "elsewhere": Path("materials_pbeu/validation")}
KEEPING = {"objective": "hybrid", "replay": {"weight": 0.05}}
LABELLED = ("forces", "zero force", "Newton", "BPTT", "implicit", "hybrid", "both, the base kept")


def _monolayers(folder: str) -> RelaxationSet:
    """Layers of more than 100 atoms with defects: starts and ends alone, whole compositions held out."""
    return RelaxationSet(
        "PBE, VASP",
        (Path(folder) / "pairs",),
        tuple(rf"{group}_" for group in range(5)),
        False,
        **MATERIALS,
        settings={"epochs": 4, "batch_size": 2, "max_programs": 1, "replay": {"weight": 0.01}},
        methods=("zero force", "Newton", "BPTT", "implicit", "hybrid"),  # nothing to learn forces from
        labelled=False,
        most=(20, 8),
    )


SETS = {
    "si_defects": RelaxationSet(
        "LDA, Quantum ESPRESSO",
        (DEMO / "si_defects_train", DEMO / "si_defects_heldout"),
        (
            r"\d+_(sub_B|int_random_H|divac)_",  # every kind of defect is held out once
            r"\d+_(int_tet_H|sub_As|vac)_",
            r"\d+_(int_split|pair_B_Al|sub_vac_Al|bulk)_",
            r"\d+_(int_tet_\d|sub_Al|pair_B_As)",
            r"\d+_(int_random_\d|pair_Al_As|sub_Mg|sub_vac_As)",
        ),
        False,
        **MATERIALS,
        settings={"epochs": 6, "batch_size": 4, "max_programs": 1, "replay": {"weight": 0.03}},
        methods=LABELLED,
        keeping=KEEPING,
    ),
    "zns": RelaxationSet(
        "HSE06, VASP",
        (Path("defects_zns_hse/relaxations"),),
        (r"ZnS_inter_26_", r"ZnS_inter_2[79]_", r"ZnS_sub_", r"ZnS_vac_1_Zn_", r"ZnS_vac_2_S_"),  # kinds of defects
        False,
        **MATERIALS,
        settings={"epochs": 8, "batch_size": 2, "max_programs": 1, "replay": {"weight": 0.03}},
        methods=LABELLED,
        keeping=KEEPING,
    ),
    "ypo4": RelaxationSet(
        "PBE, VASP, the cell relaxes too",
        (Path("ypo4_relaxations_pbe/train"),),
        (
            r"insertion_wf_Y2Mg_PO4",  # compositions
            r"insertion_wf_Y2Mg3_PO4",
            r"insertion_wf_YMg2PO4",
            r"insertion_wf_YMgPO4",
            r"insertion_wf_(Y2Mg_PO4|YMg2PO4)",
        ),
        True,
        **MATERIALS,
        settings={"epochs": 24, "batch_size": 4, "max_programs": 1, "replay": {"weight": 0.01}},
        methods=("forces", "forces and stresses", *LABELLED[1:]),
        keeping={"objective": "hybrid", "epochs": 12, "replay": {"weight": 0.05}},
    ),
    "hbn": _monolayers("defects_hbn_pbe"),
    "gase": _monolayers("defects_gase_pbe"),
    "dimers": RelaxationSet(
        "GFN2-xTB",
        (Path("dimer_relaxations_gfn2xtb/train"), Path("dimer_relaxations_gfn2xtb/test")),
        (r"mol(00|06|12|18|24|30|36|42|48|54|60)_",) * 5,  # never seen by the base either
        False,
        Path("dimers_gfn2xtb/train"),
        Path("dimers_wb97x/validation"),
        {"epochs": 2, "batch_size": 8, "max_programs": 2, "replay": {"weight": 0.03}},
        ("forces", "zero force", "Newton", "BPTT", "forces, then BPTT", "both, the base kept"),  # no minima near
        head="gfn2xtb",
        keeping={"objective": "BPTT", "epochs": 4, "replay": {"weight": 0.1}},  # it needs more steps, bears more replay
        kept=Path("dimers_wb97x/train"),
        shared=("forces, then BPTT",),
    ),
}


MGO = RelaxationSet(
    "PBEsol, VASP",
    (Path("defects_mgo_pbesol/relaxations"),),
    (r"Mg_O_0$", r"Mg_O_\+1$"),  # the charges whose starts are not at their ends
    False,
    **MATERIALS,
    settings={},
    methods=(),
)


def with_bases(sets: Mapping[str, RelaxationSet], work: Path, model: str = "small") -> dict[str, RelaxationSet]:
    """The sets with one head each of a model as their base, written below `work` unless it is there."""
    based = {}
    for key, dataset in sets.items():
        base = work / "relaxation" / f"base_{dataset.head}.lamjax"
        if not base.is_file():
            stored = checkpoints.load(model, dataset.head)
            checkpoints.save(
                base, *workflow.one_head(*stored, dataset.head), {"what": f"{Path(model).name}, head {dataset.head}"}
            )
        based[key] = dataset._replace(base=base)
    return based


class Split(NamedTuple):
    """Files of one run."""

    pairs: str  # start and end of every relaxation that is trained on
    steps: str  # all their labelled steps
    test: str  # all steps of the relaxations that are held out
    earlier: str  # what is replayed
    kept: str  # structures elsewhere with the forces of the base, once `keep` has written it, or `earlier`


def split(dataset: RelaxationSet, seed: int, n: int, folder: Path) -> Split:
    """The relaxations of a seed: `n` to learn from (0: all), nested subsets."""
    relaxations = _relaxations(dataset.files)
    apart = re.compile(dataset.held_out[seed % len(dataset.held_out)])
    test = {key: steps for key, steps in relaxations.items() if apart.match(key)}
    random = np.random.default_rng(seed)
    names = [key for key in relaxations if key not in test]
    chosen = [names[k] for k in random.permutation(len(names))[: n or dataset.most[0] or None]]
    judged = [list(test)[k] for k in sorted(random.permutation(len(test))[: dataset.most[1] or None])]
    ends = [frame for key in chosen for frame in (relaxations[key][0], relaxations[key][-1])]
    replayed = workflow.write_frames(folder / "earlier.extxyz.gz", workflow.frames(path(dataset.earlier)))
    return Split(
        workflow.write_frames(folder / "pairs.extxyz.gz", ends),
        workflow.write_frames(
            folder / "steps.extxyz.gz", [frame for key in chosen for frame in relaxations[key][:: dataset.every]]
        ),
        workflow.write_frames(folder / "test.extxyz.gz", [frame for key in judged for frame in test[key]]),
        replayed,
        str(folder.parent / f"kept_{dataset.head}.extxyz.gz") if dataset.kept else replayed,  # one file for all runs
    )


def keep(base: str, structures: str, to: str) -> None:
    """Write the structures with the forces that the base gives them, and no energies: no label of theirs is used."""
    model = checkpoints.load(base, dtype=np.float32)
    measured = workflow.measured(model[0], {"kept": [structures]})["kept"]
    labelled = []
    for frame, predicted in zip(measured.frames, predictions(*model, measured.packed, workflow.BATCH), strict=True):
        atoms = to_ase(frame.system)
        atoms.arrays["forces"] = np.asarray(predicted.forces, float)
        labelled += [atoms] * KEPT_COPIES
    text = io.StringIO()
    ase.io.write(text, labelled, format="extxyz")
    workflow.write_frames(Path(to), [text.getvalue()])


def path(file: Path) -> str:
    """A file of `SETS` where it lies."""
    resolved = (DATA / file).resolve()
    return str(resolved if resolved.suffix == ".lamjax" else resolved.with_name(f"{resolved.name}.extxyz.gz"))


def _relaxations(files: Sequence[Path]) -> Mapping[str, list[str]]:
    """The frames of each relaxation, as text, by its name."""
    relaxations: dict[str, list[str]] = {}
    for file in files:
        for frame in workflow.frames(path(file)):
            relaxations.setdefault(_fact(frame, "relax_id"), []).append(frame)
    return relaxations


def _fact(frame: str, key: str) -> str:
    return re.search(rf"\b{key}=(\S+)", frame.split("\n", 2)[1])[1]
