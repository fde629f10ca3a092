"""Potentials of a user's own by the name of the function that makes them: in files, in commands, and never unasked."""

import importlib
import sys
from pathlib import Path

import ase
import ase.io
import jax
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from invoke import invoke

import lamjax
from lamjax import checkpoints, imported
from lamjax.distillation.config import TeacherConfig
from lamjax.distillation.label import load_teacher
from lamjax.imported import FactoryConfig, parse
from lamjax.potential import CheckpointError

MODULE = '''
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import lamjax
from lamjax import classical, neighbors, numerics

Path(__file__).with_suffix(".imported").touch()
SIZE = 3


def springs(stiffness=1.0, length=2.5, cutoff=4.0, whole=False):
    """Pairs at a distance, with a table of numbers of which the first one counts."""
    def init(key=None, dtype=None):
        numbers = {"stiffness": jnp.asarray(stiffness, dtype or float), "table": [jnp.ones(SIZE, dtype or float)]}
        return numbers | ({"steps": jnp.arange(2)} if whole else {})

    def atomic_energies(params, system, nbrs):
        r = jnp.where(nbrs.mask, numerics.safe_norm(neighbors.displacements(system, nbrs)), length)
        weight = numerics.switch(r, 0.5 * cutoff, cutoff)
        return jnp.sum(params["stiffness"] * params["table"][0][0] * weight * (r - length) ** 2, axis=1) / 2

    return lamjax.Potential("springs", (neighbors.Shell(cutoff),), init, atomic_energies)


def trained():
    return springs(), {"stiffness": np.float64(7.0), "table": [np.ones(SIZE)]}


constant = springs()
def nothing(): return {"energy": 1}
def words(): return springs(), {"stiffness": "seven"}
def broken(): raise SystemExit(3)
number = 3.0
'''


@pytest.fixture
def springs(tmp_path, monkeypatch):
    """The name of a module of this test's own, which can be imported; nothing that was consented to before counts."""
    name = f"springs_{tmp_path.name.replace('-', '_')}"
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # which is told from its file by second and size alone
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(imported, "_trusted", set())
    monkeypatch.setattr(imported, "_made", {})
    importlib.invalidate_caches()
    yield name
    sys.modules.pop(name, None)


def forget(monkeypatch, name: str) -> None:
    """As in another process."""
    sys.modules.pop(name, None)
    monkeypatch.setattr(imported, "_trusted", set())
    monkeypatch.setattr(imported, "_made", {})
    Path(f"{name}.imported").unlink(missing_ok=True)


def dimer(distance: float = 3.0) -> ase.Atoms:
    return ase.Atoms("Cu2", [[0, 0, 0], [distance, 0, 0]])


def energy(model, atoms: ase.Atoms) -> float:
    system = lamjax.from_ase(atoms, np.float64)
    return float(lamjax.predict(*model, system, lamjax.allocate(model[0], system)).energy)


def test_options_of_a_name_are_arguments_of_its_function(springs):
    plain = lamjax.load(f"{springs}:springs", dtype=np.float64)
    stiff = lamjax.load(f"{springs}:springs,stiffness=4.0,length=2.0,cutoff=4", dtype=np.float64)
    weight = energy(plain, dimer()) / 0.25
    assert weight > 0.1 and energy(stiff, dimer()) == pytest.approx(4 * weight, rel=1e-12)
    assert energy(lamjax.load(f"{springs}:trained", dtype=np.float64), dimer()) == pytest.approx(7 * 0.25 * weight)
    assert energy(lamjax.load(f"{springs}:constant", dtype=np.float64), dimer()) == pytest.approx(0.25 * weight)
    assert lamjax.load(f"{springs}:springs")[0] is not stiff[0] and f"{springs}:springs" in repr(stiff[0])
    again = lamjax.load(f"{springs}:springs")[0]
    assert again == plain[0] and hash(again) == hash(plain[0])
    atoms = dimer()
    atoms.calc = lamjax.Calculator(stiff)
    assert atoms.get_potential_energy() == pytest.approx(4 * weight)


def test_names_are_told_from_files_and_taken_apart(springs):
    assert parse("a.b:c.d, x = 1.5,y=[1, 2],z={k: v},t=text") == FactoryConfig(
        "a.b:c.d", '{"t": "text", "x": 1.5, "y": [1, 2], "z": {"k": "v"}}'
    )
    for name in ("small", "model.lamjax", "a/b:c", "C:\\model.lamjax", "a:b:c", "1a:b", ":b", "a:"):
        assert not checkpoints.is_function(name)
    Path("a:b").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match="unknown kind of file"):
        lamjax.load("a:b")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_file_keeps_function_options_and_numbers(springs, monkeypatch, dtype):
    potential, params = lamjax.load(f"{springs}:springs,length=2.0,whole=true", dtype=dtype)
    params = params._replace(descriptor=params.descriptor | {"stiffness": jax.numpy.asarray(0.3, dtype)})
    lamjax.save("own.lamjax", potential, params, {"data": "springs"})
    before = energy((potential, params), dimer())
    forget(monkeypatch, springs)
    again, result = lamjax.load("own.lamjax", dtype=dtype, trust=f"{springs}:springs")
    jax.tree.map(np.testing.assert_array_equal, result, params)
    assert {str(x.dtype) for x in jax.tree.leaves(result)} == {dtype, str(params.descriptor["steps"].dtype)}
    assert energy((again, result), dimer()) == before and again == potential
    assert checkpoints.read("own.lamjax").card == {"data": "springs"}  # consent lasts for the process


def test_a_file_imports_nothing_without_consent(springs, monkeypatch):
    lamjax.save("own.lamjax", *lamjax.load(f"{springs}:springs"))
    forget(monkeypatch, springs)
    for trust in ((), "other.module:springs", [f"{springs}:trained"]):
        with pytest.raises(CheckpointError, match=r"name it yourself.*trust='springs.*--trust springs") as caught:
            lamjax.load("own.lamjax", trust=trust)
        assert "own.lamjax" in str(caught.value) and f"{springs}:springs" in str(caught.value)
        assert springs not in sys.modules and not Path(f"{springs}.imported").exists()
    for wrong in ("own.lamjax", "", "os"):
        with pytest.raises(ValueError, match="is no function to import"):
            lamjax.load("own.lamjax", trust=[wrong])
    code, _, error = invoke("show", "own.lamjax")
    assert code != 0 and f"--trust {springs}:springs" in str(error) and springs not in sys.modules
    code, output, _ = invoke("show", "own.lamjax", "--trust", f"{springs}:springs")
    assert code == 0 and f"{springs}:springs()" in output and "stiffness" in output


WRONG = {
    "springs_none:springs": "cannot be imported (ModuleNotFoundError",
    "NAME:sprins": "Did you mean springs?",
    "NAME:nothing": "returns a lamjax.Potential",
    "NAME:words": "the parameters of NAME:words() hold",
    "NAME:broken": "fails (SystemExit: 3)",
    "NAME:number": "Name a function that returns a potential",
    "NAME:constant,length=2": "it takes no options",
    "NAME:springs,strength=2": "unexpected keyword argument 'strength'",
    "NAME:springs,length": "'length' is no option KEY=VALUE",
    "NAME:springs,length=2,length=3": "length is given twice",
    "NAME:springs,length=[2": "is no YAML",
    "NAME:springs,length=2000-01-01": "options are numbers, texts",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_potential_is_named(springs, name):
    with pytest.raises(ValueError) as caught:
        lamjax.load(name.replace("NAME", springs))
    assert WRONG[name].replace("NAME", springs) in str(caught.value)


def test_numbers_of_another_form_are_refused(springs, monkeypatch):
    model = lamjax.load(f"{springs}:springs")
    other = model[1]._replace(descriptor=model[1].descriptor | {"table": [np.ones(4)]})
    with pytest.raises(CheckpointError, match=r"table/0 has shape \(4,\), expected \(3,\)"):
        lamjax.save("own.lamjax", model[0], other)
    with pytest.raises(ValueError, match="takes the parameters of a potential third"):
        lamjax.save("own.lamjax", model[0], model[1].descriptor)
    with pytest.raises(
        CheckpointError, match=r"does not say where its code is.*lamjax.load\('package.module:factory'\)"
    ):
        lamjax.save("own.lamjax", importlib.import_module(springs).constant, model[1])
    lamjax.save("own.lamjax", *model)
    for old, new, message in (
        ("SIZE = 3", "SIZE = 5", r"table/0 has shape \(3,\), expected \(5,\)"),
        ('"stiffness": jnp', '"strength": jnp', "parameters are missing: strength"),
        ("number = 3.0", "sprigs = springs; del springs", r"holds the parameters of springs_.*Did you mean sprigs"),
    ):
        forget(monkeypatch, springs)
        Path(f"{springs}.py").write_text(MODULE.replace(old, new))
        importlib.invalidate_caches()
        sys.modules.pop(springs, None)
        with pytest.raises(CheckpointError, match=message) as caught:
            lamjax.load("own.lamjax", trust=f"{springs}:springs")
        assert str(caught.value).startswith("own.lamjax")


def labelled(distance: float) -> ase.Atoms:
    atoms = dimer(distance)
    atoms.calc = SinglePointCalculator(atoms, energy=0.1 * distance, forces=[[0.1, 0, 0], [-0.1, 0, 0]])
    return atoms


def test_commands_take_it_where_a_model_stands(springs):
    ase.io.write("two.extxyz", [dimer(2.3), dimer(2.8)])
    ase.io.write("labels.extxyz", [labelled(2.3), labelled(2.8)])
    name = f"{springs}:springs,length=2.4"
    for arguments in (("relax", name, "two.extxyz"), ("relax", "two.extxyz", "--potential", name, "-o", "b.extxyz")):
        code, output, error = invoke(*arguments)
        assert code == 0, (output, error)
    for path in ("relaxed.extxyz", "b.extxyz"):
        structures = [atoms.get_distance(0, 1) for atoms in ase.io.read(path, ":")]
        np.testing.assert_allclose(structures, 2.4, atol=0.02)
    code, output, error = invoke("eval", f"--potential={name}", "labels.extxyz")
    assert code == 0 and "2 frames" in output, error
    code, output, error = invoke("show", "--potential", name)
    assert code == 0 and "length=2.4" in output, error
    code, output, error = invoke("show", "--potential")
    assert code and "--potential" in output + str(error) and "argument" in output + str(error)
    teacher, params = load_teacher(TeacherConfig(name))
    assert teacher.head == "Default" and float(params.descriptor["stiffness"]) == 1.0


def pairs() -> None:
    frames = []
    for k in range(4):
        for step, distance in enumerate((2.8 + 0.02 * k, 2.45)):
            frames.append(labelled(distance))
            frames[-1].calc.results["forces"] = np.zeros((2, 3))
            frames[-1].info |= {"relax_id": f"r{k}", "step": step, "n_steps": 2}
    ase.io.write("pairs.extxyz", frames)


def test_it_learns_in_commands_and_its_results_are_files(springs, monkeypatch):
    pairs()
    ase.io.write("labels.extxyz", [labelled(2.3 + 0.02 * k) for k in range(20)])
    name, one = f"{springs}:springs", ["--epochs", "1", "--hold-out", "0.5", "--max-programs", "1"]
    code, output, error = invoke(
        "finetune-structures", name, "pairs.extxyz", *one, "--objective.type", "force", "-o", "s"
    )
    assert code == 0, (output, error)
    steps = ["--steps", "2", "--head", "Default", "--bias", "keep", "--batch-size", "2"]
    code, output, error = invoke("finetune", name, "labels.extxyz", *steps, "-o", "f")
    assert code == 0, (output, error)
    forget(monkeypatch, springs)
    for folder in "sf":
        with pytest.raises(CheckpointError, match="--trust"):
            lamjax.load(f"{folder}/model.lamjax")
    tuned = [lamjax.load(f"{folder}/model.lamjax", trust=f"{springs}:springs")[1].descriptor for folder in "sf"]
    assert all(float(one["stiffness"]) != 1.0 for one in tuned)


def test_what_needs_a_descriptor_or_heads_is_refused(springs):
    ase.io.write("labels.extxyz", [labelled(2.3 + 0.02 * k) for k in range(20)])
    name, keep = f"{springs}:springs", ("--head", "Default", "--bias", "keep")
    for arguments, text in {
        ("convert", name, "x.lamjax"): "lamjax convert is for models with a config",
        ("finetune", name, "labels.extxyz", "--head", "mine", "--from", "random"): "a new head",
        ("finetune", name, "labels.extxyz", "--head", "Default", "--steps", "2"): "bias: keep",
        ("finetune", f"{name},whole=true", "labels.extxyz", *keep): "the parameters descriptor/steps are whole numbers",
        ("relax", name, "labels.extxyz", "--head", "mine"): "available: Default",
        ("relax", "labels.extxyz", "--potential", f"{springs}:sprins"): "Did you mean springs?",
    }.items():
        code, _, error = invoke(*arguments)
        assert code != 0 and text in str(error), (arguments, error)
