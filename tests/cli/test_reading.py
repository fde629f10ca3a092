"""Files as people have them, through the commands: keys of labels, elements of types, held atoms."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import ase.build
import ase.io
import jax
import numpy as np
import pytest
from invoke import invoke
from typer.main import get_command

import lamjax
from lamjax import cli, data, from_ase
from lamjax.cli import reading, relax_records
from lamjax.cli.keys import KeyCommand
from lamjax.cli.md import _read as read_start
from lamjax.cli.relax import _read as read_starts
from lamjax.descriptors import DPA1Config
from lamjax.heads import EnergyHeadConfig
from lamjax.potential import PotentialConfig
from lamjax.training import config as configs
from lamjax.training.structures_config import StructureTuneConfig
from lamjax.training.tasks import read_tasks

CONFIG = PotentialConfig(
    ("Si",),
    DPA1Config(rcut=3.2, rcut_smth=0.5, sel=16, neuron=(2, 4), axis_neuron=2, tebd_dim=2),
    (("Default", EnergyHeadConfig(neuron=(4, 4))),),
)


def silicon(seed: int = 0) -> ase.Atoms:
    atoms = ase.build.bulk("Si", "diamond", a=5.43)
    atoms.rattle(0.05, seed=seed)
    return atoms


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """model.lamjax, in the present folder."""
    potential = lamjax.build(CONFIG)
    lamjax.save(tmp_path / "model.lamjax", potential, potential.init(jax.random.key(1), np.float64))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    """(exit code, output without line ends, exception)."""
    code, output, error = invoke(*arguments, COLUMNS="200")
    return code, " ".join(output.split()), error


def dialect(name: str, **info):
    """A file with labels under names that nobody knows."""
    atoms = silicon()
    atoms.info |= {"blyp": -8.0, **info}
    atoms.set_array("pull", np.full((2, 3), 0.25))
    ase.io.write(name, atoms, format="extxyz")


KEYS = ("--energy-key", "blyp", "--forces-key", "pull")


def test_keys_are_chosen_on_the_commands_that_read_labels(folder):
    dialect("odd.extxyz")
    for target in ("odd.h5", "even.extxyz"):
        assert run("data", "convert", "odd.extxyz", target, *KEYS)[0] == 0
        (frame,) = data.read(target)
        assert frame.labels.energy == -8 and (frame.labels.forces == 0.25).all()
    code, output, _ = run("data", "check", "odd.extxyz", *KEYS)
    assert code == 0 and "energy: blyp (1), forces: pull (1)" in output and "│ with energy │ 1 │" in output
    _, _, error = run("eval", "model.lamjax", "odd.extxyz", "--stress-key", "sigma")
    assert "no frame has the key 'sigma' that was given for the stress" in str(error)


def test_every_command_that_reads_labels_takes_the_keys():
    options = {"--energy-key", "--forces-key", "--stress-key", "--virial-key", "--elements"}
    commands = get_command(cli.app).commands
    reading = {name: commands[name] for name in ("train", "eval", "distill")}
    reading |= {name: commands["data"].commands[name] for name in ("check", "convert")}
    for name, command in reading.items():
        assert options <= {option for one in command.load().params for option in one.opts}, name
    for name in ("relax", "md"):
        assert "--elements" in {option for one in commands[name].load().params for option in one.opts}
    for name in ("finetune", "finetune-structures", "finetune-properties"):  # every key of their configs is an option
        assert issubclass(type(commands[name].load()), KeyCommand)
    as_keys = {"energy_key", "forces_key", "stress_key", "virial_key", "type_map"}
    assert as_keys <= {field.name for kind in (configs.TaskConfig,) for field in dataclasses.fields(kind)}
    assert as_keys <= {field.name for field in dataclasses.fields(StructureTuneConfig)}


def test_keys_of_configs_reach_the_files(folder):
    dialect("odd.extxyz")
    content = {"train": ["odd.extxyz"], "base": "model.lamjax", "energy_key": "blyp", "forces_key": "pull"}
    settings = configs.validate(content)
    assert configs.read_options(settings) == data.ReadOptions("blyp", "pull")
    task = configs.TaskConfig(train=("odd.extxyz",), energy_key="pbe", type_map=("Si",))
    assert configs.read_options(task, settings) == data.ReadOptions("pbe", "pull", elements=("Si",))
    potential, _ = lamjax.load("model.lamjax")
    (one,) = read_tasks(settings, potential)
    assert one.frames[0].labels.energy == -8 and (one.frames[0].labels.forces == 0.25).all()


def test_the_check_names_what_looks_like_a_label(folder):
    dialect("odd.extxyz", mace_energy=-7.0)
    code, output, _ = run("data", "check", "odd.extxyz", "--json", "check.json")
    assert code == 0
    assert "warning odd.extxyz frame 0: mace_energy looks like a label and is not taken" in output
    assert "--energy-key mace_energy" in output
    findings = json.loads((folder / "check.json").read_text())["findings"]
    assert [f["n"] for f in findings if "mace_energy" in f["what"]] == [1]


DUMP = "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n2\nITEM: BOX BOUNDS pp pp pp\n0 8\n0 8\n0 8\n"
DUMP += "ITEM: ATOMS id type x y z fx fy fz\n1 1 0.1 0 0 0 0 1\n2 1 2.3 0 0 0 0 -1\n"


def test_structures_of_a_dump_are_read_with_elements_alone(folder):
    """By `relax` (which names what it leaves out), `md` and `data convert`."""
    (folder / "si.dump").write_text(DUMP)
    path, elements = Path("si.dump"), reading.options(elements="Si")
    starts, failures = read_starts([path], ["Si"], data.ReadOptions())
    assert not failures and all("Give the elements of types 1, 2" in (start.error or "") for start in starts) and starts
    (start,), failures = read_starts([path], ["Si"], elements)
    assert not failures and start.start.numbers.tolist() == [14, 14]
    with pytest.raises(ValueError, match="Give the elements of types 1, 2"):
        read_start(path, None, ["Si"], data.ReadOptions())
    assert read_start(path, None, ["Si"], elements).system.numbers.tolist() == [14, 14]
    _, _, error = run("relax", "model.lamjax", "si.dump", "--elements", "Sx")
    assert "--elements Sx: 'Sx' is no element" in str(error)
    assert run("data", "convert", "si.dump", "si.extxyz", "--elements", "Si")[0] == 0
    (frame,) = data.read("si.extxyz")
    assert frame.keys == ("", "REF_forces", "") and frame.system.numbers.tolist() == [14, 14]


def test_a_fixed_array_holds_atoms_in_relax_and_md(folder):
    """As `read_pairs` documents it; a word `fixed` in the header holds nothing and spoils nothing."""
    atoms, worded = silicon(), silicon()
    atoms.set_array("fixed", np.array([True, False]))
    worded.info["fixed"] = True
    ase.io.write("held@0.extxyz", atoms, format="extxyz")
    ase.io.write("worded.extxyz", worded, format="extxyz")
    paths = [Path("held@0.extxyz"), Path("worded.extxyz")]
    (held, free), failures = read_starts(paths, ["Si"], data.ReadOptions())
    assert not failures and "fixed" not in free.info
    np.testing.assert_array_equal(held.info["fixed"], [[True] * 3, [False] * 3])
    frames = [read_start(path, None, ["Si"], data.ReadOptions()) for path in paths]
    np.testing.assert_array_equal(frames[0].info["fixed"], held.info["fixed"])
    assert "fixed" not in frames[1].info


def test_relaxed_records_carry_no_label_of_their_start():
    """Else it would be taken for one of the end."""
    system = from_ase(silicon(), np.float64)
    ended = {"energy": -1.0, "forces": np.zeros((2, 3)), "virial": np.zeros((3, 3)), "fmax": 0.0, "n_steps": 1}
    relaxed = SimpleNamespace(system=system, **ended, converged=True, finite=True, truncated=False)
    stale = {"dft_energy": -3.0, "mace_energy": -2.0, "Energy": -2.0, "virials": 1.0, "REF_energy": -5.0}
    atoms = relax_records.labelled(relaxed, {"name": "a", **stale})
    assert data.from_atoms(atoms).labels.energy == -1
    assert atoms.info["name"] == "a" and not stale.keys() & atoms.info.keys()


def test_what_is_converted_to_text_keeps_arrays_and_held_atoms(folder):
    atoms = silicon()
    atoms.set_array("fixed", np.array([True, False]))
    atoms.set_array("final_positions", atoms.positions + 0.1)
    ase.io.write("start.extxyz", atoms)
    assert run("data", "convert", "start.extxyz", "again.extxyz")[0] == 0
    (frame,) = data.read("again.extxyz")
    np.testing.assert_array_equal(frame.info["fixed"], [[True] * 3, [False] * 3])
    np.testing.assert_allclose(frame.info["final_positions"], atoms.positions + 0.1, atol=1e-7)
    assert run("data", "convert", "start.extxyz", "again.h5")[0] == 0
    (frame,) = data.read("again.h5")
    np.testing.assert_array_equal(frame.info["fixed"], [[True] * 3, [False] * 3])


@pytest.mark.parametrize("name", ["a[bold]b", "run@300K", "what*?", "[red]", "#1:2"])
def test_names_that_mean_something_to_others(folder, name):
    """To the terminal, to ASE or to the shell; they are names of files."""
    source = folder / f"{name}.extxyz"
    with open(source, "w") as file:
        ase.io.write(file, silicon(), format="extxyz")
    code, output, _ = run("data", "check", source.name)
    assert code == 0 and source.name in output
    code, output, _ = run("data", "convert", source.name, f"{source.name}.h5")
    assert code == 0 and f"{source.name}.h5: 1 frames" in output


def test_the_check_lists_all_keys_and_one_line_a_kind(folder):
    good = silicon()
    good.info |= {"REF_energy": -8.0, "config_type": "bulk"}
    good.set_array("tag", np.ones(2))
    images = [good]
    for k in range(3):  # the same fault with other numbers
        images.append(silicon(k))
        images[-1].positions[1] = images[-1].positions[0] + 1e-4 * (k + 1)
    ase.io.write("set.extxyz", images, format="extxyz")
    code, output, _ = run("data", "check", "set.extxyz", "--json", "audit.json")
    assert code == 1 and "energy: REF_energy (1)" in output and "config_type (1)" in output and "tag (1)" in output
    assert output.count("two atoms on one place") == 1 and "(3 frames in all)" in output
    assert len(json.loads(Path("audit.json").read_text())["findings"]) >= 3  # each by itself


def test_a_narrow_terminal_cuts_nothing_off(folder):
    atoms = silicon()
    atoms.info |= {"REF_energy": -8.0, "a_key_with_a_very_long_name_that_has_no_blank_to_break_a_line_at": 1}
    ase.io.write("set.extxyz", [atoms], format="extxyz")
    _, output, _ = invoke("data", "check", "set.extxyz", COLUMNS="60")
    assert "…" not in output and max(map(len, output.splitlines())) <= 60
    assert "break_a_line_at" in "".join(part.strip(" │") for part in output.splitlines())
