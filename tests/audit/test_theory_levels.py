"""Who labelled a frame: counted in every kind of set, told by the audit, and heeded by training."""

import warnings

import ase.build
import ase.io
import jax
import numpy as np
import pytest
import students
from ase.calculators.emt import EMT

from lamjax import data
from lamjax.audit import theory_levels as levels
from lamjax.distillation import CalculatorConfig, PotentialLabeller, open_labeller
from lamjax.distillation.setup import _check_initial
from lamjax.frames import Joined, Subset
from lamjax.training.config import validate
from lamjax.training.tasks import read_tasks


def write(path, *who: str | None) -> str:
    """A set of copper whose frames were labelled by these."""
    collected = []
    for seed, one in enumerate(who):
        atoms = ase.build.bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed + len(path.name))
        atoms.calc = EMT()
        atoms.get_stress()
        atoms.info |= {} if one is None else {levels.KEY: one}
        collected.append(atoms)
    ase.io.write(path, collected)
    return str(path)


def test_levels_are_counted_in_every_kind_of_set(tmp_path):
    frames = data.read(write(tmp_path / "a.extxyz", "CHGNet", None, "CHGNet", "7", None))
    expected = {"CHGNet": 2, "": 2, "7": 1}
    data.write_store(tmp_path / "a.h5", frames)
    store = data.open_frames(tmp_path / "a.h5")
    data.write_store(tmp_path / "plain.h5", [frame._replace(info={}) for frame in frames])
    plain = data.open_frames(tmp_path / "plain.h5")
    assert levels.levels(frames) == levels.levels(store) == expected
    assert levels.levels(Subset(store, [0, 1, 2])) == levels.levels(Subset(frames, [0, 1, 2])) == {"CHGNet": 2, "": 1}
    assert levels.levels(Joined([store, frames, plain])) == {"CHGNet": 4, "": 9, "7": 2}
    assert levels.levels(plain) == {"": 5} and levels.levels([]) == {}
    assert levels.described(expected) == "2 frames by CHGNet, 1 frames by 7, 2 frames that do not say"


@pytest.mark.parametrize(
    ("who", "severity"),
    [(("A", "B", "B"), "error"), (("A", None, "A"), "warning"), (("A", "A"), None), ((None,), None)],
)
def test_the_audit_says_whose_labels_are_mixed(tmp_path, who, severity):
    findings = data.audit({"a": data.read(write(tmp_path / "a.extxyz", *who))}).findings
    mixed = [one for one in findings if "levels of theory" in one.what]
    assert [one.severity for one in mixed] == ([severity] if severity else [])
    assert not mixed or mixed[0].where == f"a.extxyz frame {0 if severity == 'error' else 1}" and mixed[0].n == 1


def test_the_audit_tells_sets_of_two_levels_apart(tmp_path):
    sets = {
        name: data.read(write(tmp_path / f"{name}.xyz", who)) for name, who in (("a", "A"), ("bb", "B"), ("ccc", None))
    }
    findings = [one for one in data.audit(sets).findings if "labelled by" in one.what]
    assert [(one.set, one.what) for one in findings] == [("bb", "labelled by B; a by A")]


def tasks(tmp_path, **settings):
    case = students.case()
    sets = {name: [write(tmp_path / f"{name}.extxyz", *who)] for name, who in settings.pop("sets").items()}
    heads = {name: {"train": files, "head": "Default"} for name, files in sets.items()}
    return read_tasks(validate({"tasks": heads, "base": "none.lamjax"} | settings), case.potential)


@pytest.mark.parametrize("sets", [{"one": ("A", "B")}, {"one": ("A",), "two": ("B",)}])
def test_no_head_learns_two_levels_unawares(tmp_path, sets):
    with pytest.raises(ValueError, match="(?s)The head Default would learn .*by A.*by B.*mix_levels: true"):
        tasks(tmp_path, sets=sets)
    assert len(tasks(tmp_path, sets=sets, mix_levels=True)) == len(sets)


def test_frames_that_do_not_say_are_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="2 frames by A, 1 frames that do not say"):
        tasks(tmp_path, sets={"one": ("A", "A"), "two": (None,)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tasks(tmp_path, sets={"one": (None,), "two": (None,)})


def test_initial_labels_of_another_level_are_warned_of(tmp_path):
    case = students.case()
    teacher = PotentialLabeller(case.potential, jax.tree.map(np.asarray, case.params), level="teacher")
    initial = data.read(write(tmp_path / "a.extxyz", "emt", None))
    with pytest.warns(UserWarning, match="1 frames by emt, 1 frames that do not say.*the labeller is teacher"):
        _check_initial(initial, teacher)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _check_initial(initial, open_labeller(CalculatorConfig("emt")))
