"""Calculators that are imported by name: what may be named, what they answer, and what their failures cost."""

import ase.build
import ase.io
import fake_calculators
import numpy as np
import pytest
from ase.calculators.emt import EMT
from invoke import invoke

import lamjax
from lamjax import classical
from lamjax.distillation import CalculatorConfig, DistillConfig, Failed, open_labeller
from lamjax.distillation.calculators import calculator_class, open_calculator
from lamjax.training.config import to_json, validate

FAKE = "fake_calculators"


@pytest.fixture(autouse=True)
def counted():
    fake_calculators.made.clear()
    return fake_calculators.made


def frames(n: int = 4, **trouble: str) -> list[ase.Atoms]:
    """Copper, rattled; frame K has the trouble that is given as fK."""
    collected = [ase.build.bulk("Cu", cubic=True) for _ in range(n)]
    for seed, atoms in enumerate(collected):
        atoms.rattle(0.1, seed=seed)
        if f"f{seed}" in trouble:
            atoms.info["trouble"] = trouble[f"f{seed}"]
    return collected


def labels(name: str, asked, **config):
    return list(open_labeller(CalculatorConfig(f"{FAKE}:{name}", **config)).label(asked, None))


def test_an_imported_calculator_is_made_once_and_says_what_it_says_alone(counted):
    asked = frames(6)
    answers = labels("emt", asked, options={"scale": 2.0})
    for atoms, answer in zip(asked, answers, strict=True):
        atoms.calc = EMT()
        assert answer.get_potential_energy() == atoms.get_potential_energy()
        np.testing.assert_array_equal(answer.get_forces(), atoms.get_forces())
        np.testing.assert_array_equal(answer.get_stress(), atoms.get_stress())
    assert counted == ["emt"] * 2  # the second is the one that the first is compared with
    counted.clear()
    labels("emt", asked, reuse=False)
    assert len(counted) == 1 + 6


def test_an_instance_that_remembers_is_not_used_again(counted):
    answers = labels("Forgetful", frames(5))
    assert [answer.get_potential_energy() for answer in answers] == [1.0] * 5  # each as if it were the first


def test_the_energy_is_that_of_which_forces_are_the_derivative():
    asked = frames(1)
    (answer,) = labels("Spring", asked, options={"k": 3.0})
    np.testing.assert_allclose(answer.get_potential_energy(), 1.5 * np.sum(asked[0].positions ** 2), rtol=1e-14)
    (answer,) = labels("Plain", asked)
    assert answer.get_potential_energy() == 2.0 and "stress" not in answer.calc.results


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("crash", "RuntimeError: scf did not"),
        ("exit", "SystemExit: 3"),
        ("no stress", "the stress is missing, although"),
        ("shape", r"the forces has shape \(1, 3\), expected \(4, 3\)"),
    ],
)
def test_a_failure_costs_its_frame_and_its_instance(trouble, message):
    result = labels("Troubled", frames(5, f1=trouble, f3=trouble))
    assert [isinstance(one, Failed) for one in result] == [False, True, False, True, False]
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(result[1].reason)


@pytest.mark.parametrize("name", ["energy", "forces", "stress"])
def test_what_is_not_finite_is_no_label(name):
    result = labels("Troubled", frames(3, f0=name))
    assert isinstance(result[0], Failed) and f"the {name} is not finite" in result[0].reason
    assert not any(isinstance(one, Failed) for one in result[1:])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("no_such_package.at_all:Calculator", {}, "cannot be imported .*no_such_package.*PYTHONPATH"),
        (f"{FAKE}:Sprong", {}, "has no 'Sprong'. Did you mean Spring"),
        (f"{FAKE}:NOT_A_FACTORY", {}, "is a float"),
        (f"{FAKE}:nothing", {}, "returned a int without get_potential_energy"),
        (f"{FAKE}:Spring", {"strength": 1}, "cannot be made with the options {'strength': 1} .*strength"),
        ("fake_calculators", {}, "no calculator.*package.module:factory"),
        ("../fake_calculators:Spring", {}, "no calculator"),
        (f"{FAKE}:", {}, "no calculator"),
    ],
)
def test_what_cannot_be_made_is_told_before_the_first_frame(name, options, message):
    with pytest.raises(ValueError, match=message):
        open_labeller(CalculatorConfig(name, options))


def test_a_method_of_a_class_can_make_a_calculator(monkeypatch):
    monkeypatch.setattr(fake_calculators.Spring, "soft", classmethod(lambda cls: cls(k=0.1)), raising=False)
    assert calculator_class(f"{FAKE}:Spring.soft")().k == 0.1


def test_reading_a_config_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "hostile.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    labeller = {"type": "calculator", "name": "hostile:Calculator"}
    content = {"labeller": labeller, "student": {"base": "x.lamjax"}, "start": ["a.extxyz"]}
    config = validate(content, "stored", DistillConfig)
    to_json(config)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="has no 'Calculator'"):
        open_labeller(config.labeller)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labeller", "no_such_package:Thing"], "'no_such_package:Thing' cannot be imported"),
        (["--labeller", f"{FAKE}:Spring", "--option", "strength=2"], "with the options {'strength': 2}"),
        (["--labeller", "emt", "--head", "a"], "--head a: that is for a model file"),
        (["teacher.lamjax", "--labeller", "emt"], "either TEACHER or --labeller"),
        (["--option", "a=2"], "--option to a calculator"),
    ],
)
def test_distill_takes_a_calculator_in_the_command(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "student.yaml").write_text(
        "model: {elements: [Cu], descriptor: {type: dpa1}, heads: [[Default, {}]]}\n"
    )
    ase.io.write("start.extxyz", frames(1))
    code, _, error = invoke("distill", *words, "--student", "student.yaml", "--start", "start.extxyz")
    assert code and isinstance(error, ValueError) and message in str(error)


@pytest.mark.parametrize("name", ["morse", "morse_with_parameters"])
def test_a_function_that_makes_a_potential_labels(monkeypatch, tmp_path, name):
    (tmp_path / "own_pairs.py").write_text(
        "from lamjax import classical\n"
        "def morse(depth=0.3): return classical.morse(depth=depth)\n"
        "def morse_with_parameters(depth=0.3): return morse(depth), morse(depth).init()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    atoms = ase.build.bulk("Cu", a=3.5)
    labeller = open_calculator(f"own_pairs:{name}", {"depth": 0.4})
    (answer,) = labeller.label([atoms])
    morse = classical.morse(depth=0.4)
    atoms.calc = lamjax.Calculator((morse, morse.init()))
    assert answer.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    np.testing.assert_allclose(answer.get_stress(), atoms.get_stress(), atol=1e-9)
