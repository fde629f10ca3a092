"""`lamjax md` as a user types it: what it writes, what stops it, and how it goes on."""

import csv
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase
import ase.build
import ase.io
import h5py
import jax
import numpy as np
import pytest
from ase.constraints import FixAtoms
from invoke import invoke
from pages import read_page

import lamjax
from lamjax import files
from lamjax.cli import md_report
from lamjax.descriptors import DPA1Config
from lamjax.heads import EnergyHeadConfig
from lamjax.potential import PotentialConfig

CONFIG = PotentialConfig(
    ("Si",),
    DPA1Config(rcut=3.2, rcut_smth=0.5, sel=16, neuron=(2, 4), axis_neuron=2, tebd_dim=2),
    (("Default", EnergyHeadConfig(neuron=(4, 4))),),
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """model.lamjax and si.extxyz."""
    potential = lamjax.build(CONFIG)
    lamjax.save(tmp_path / "model.lamjax", potential, potential.init(jax.random.key(1), np.float64))
    atoms = ase.build.bulk("Si", "diamond", a=5.43)
    atoms.rattle(0.02, seed=0)
    ase.io.write(tmp_path / "si.extxyz", atoms)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    """The command in this process; (exit code, output, exception)."""
    code, output, error = invoke("md", "model.lamjax", *arguments)
    return code, " ".join(output.split()), error


def rows(path: str) -> list[dict[str, float]]:
    with open(path, newline="") as file:
        return [{key: float(x) for key, x in row.items()} for row in csv.DictReader(file)]


def test_a_simulation_is_written_refused_and_gone_on_with(folder):
    atoms = ase.io.read("si.extxyz")
    atoms.set_constraint(FixAtoms([1]))
    ase.io.write("held.traj", atoms)
    common = ["held.traj", "--timestep", 1, "--temperature", 200, "--every", 10, "--output", "out/run.traj"]
    code, output, _ = run(*common, "--steps", 25)
    assert code == 0, output
    assert "1 of them fixed" in output and "200 K, Langevin" in output and "25 of 25 steps" in output
    structures = ase.io.read("out/run.traj", ":")
    assert [a.info["step"] for a in structures] == [0, 10, 20, 25]
    np.testing.assert_array_equal([a.positions[1] for a in structures], [atoms.positions[1]] * 4)
    assert np.abs(structures[-1].positions[0] - atoms.positions[0]).max() > 1e-3
    assert rows("out/run.csv")[0]["temperature_K"] == pytest.approx(200)
    assert Path("out/run.png").stat().st_size > 10_000
    first, last = read_page(Path("out/run.html")).structures["pairs"][0]
    assert (first["label"], last["label"]) == ("first frame", f"last frame, {rows('out/run.csv')[-1]['time_ps']:g} ps")

    _, _, error = run(*common, "--steps", 40)
    assert isinstance(error, ValueError) and "--resume" in str(error) and "another output" in str(error)
    code, output, _ = run(*common, "--steps", 25, "--resume")
    assert code == 0 and "All of the 25 steps are done" in output
    with files.alone("out/run.traj"):
        _, _, error = run(*common, "--steps", 40, "--resume")
    assert isinstance(error, ValueError) and "Another process is writing out/run.traj" in str(error)
    assert [a.info["step"] for a in ase.io.read("out/run.traj", ":")] == [0, 10, 20, 25]
    code, output, _ = run(*common, "--time", 0.04, "--resume")
    assert code == 0 and "Going on from step 25" in output
    assert [row["step"] for row in rows("out/run.csv")] == [0, 10, 20, 25, 30, 40]
    _, _, error = run(*common, "--steps", 90, "--resume", "--seed", 3)
    assert isinstance(error, ValueError) and "seed was 0, is 3" in str(error)


def test_domains_are_of_the_simulation(folder):
    """One device has one domain: the same numbers; and a run goes on with the domains that it began with."""
    common = ["si.extxyz", "--ensemble", "nve", "--temperature", 300, "--every", 2, "--dtype", "float64"]
    for path, domains in (("one.extxyz", ()), ("divided.extxyz", ("--domains", 1, 1, 1))):
        code, output, _ = run(*common, "--steps", 4, "--output", path, *domains)
        assert code == 0, output
    a, b = (rows(path) for path in ("one.csv", "divided.csv"))
    assert [row["potential_eV"] for row in a] == pytest.approx([row["potential_eV"] for row in b], abs=1e-10)
    _, _, error = run(*common, "--steps", 6, "--output", "divided.extxyz", "--resume")
    assert isinstance(error, ValueError) and "domains was [1, 1, 1], is None" in str(error)
    code, output, _ = run(*common, "--steps", 6, "--output", "divided.extxyz", "--resume", "--domains", 1, 1, 1)
    assert code == 0 and "Going on from step 4" in output
    _, _, error = run(*common, "--steps", 4, "--output", "many.extxyz", "--domains", 9, 9, 9)
    assert isinstance(error, ValueError) and "9 x 9 x 9 domains need 729 devices" in str(error)


def test_constant_energy_and_pressure_begin_with_the_velocities_of_the_file(folder):
    atoms = ase.io.read("si.extxyz")
    atoms.set_momenta([[1.0, 2.0, -1.0], [-1.0, -2.0, 1.0]])
    ase.io.write("fast.extxyz", [ase.io.read("si.extxyz"), atoms])
    shared = ["fast.extxyz", "--frame", -1, "--steps", 20, "--every", 10]
    for ensemble in ("nve", "npt"):
        code, output, _ = run(*shared, "--ensemble", ensemble, "--output", f"{ensemble}.extxyz", "--dtype", "float64")
        assert code == 0, output
        assert "velocities: those of the structure" in output and "conserved, drift (eV/atom/ps)" in output
        structures, table = ase.io.read(f"{ensemble}.extxyz", ":"), rows(f"{ensemble}.csv")
        np.testing.assert_allclose(structures[0].get_momenta(), atoms.get_momenta(), atol=1e-7)
        assert table[0]["kinetic_eV"] == pytest.approx(atoms.get_kinetic_energy())
        assert table[2]["total_eV"] == pytest.approx(structures[2].get_total_energy(), abs=1e-6)
        assert table[2]["conserved_eV"] == pytest.approx(table[0]["conserved_eV"], abs=1e-3)
        pressure = -structures[2].get_stress(include_ideal_gas=True)[:3].mean() / ase.units.GPa
        assert table[2]["pressure_GPa"] == pytest.approx(pressure, abs=1e-4)
    assert table[2]["volume_A3"] != table[0]["volume_A3"]
    code, output, _ = run(*shared, "--ensemble", "nve", "--temperature", 400, "--output", "drawn.extxyz")
    assert code == 0 and "velocities: drawn" in output
    assert rows("drawn.csv")[0]["temperature_K"] == pytest.approx(400)


def test_neighbours_that_the_model_drops_are_told_once(folder):
    """Silicon has four neighbours within 3.2 Å."""
    common = ["si.extxyz", "--steps", 2, "--every", 1, "--timestep", 0.5, "--temperature", 50]
    code, output, _ = run(*common, "--output", "all.h5")
    assert code == 0 and "more neighbours" not in output
    narrow = dataclasses.replace(CONFIG, descriptor=dataclasses.replace(CONFIG.descriptor, sel=3))
    potential = lamjax.build(narrow)
    lamjax.save("model.lamjax", potential, potential.init(jax.random.key(1), np.float64))
    code, output, _ = run(*common, "--output", "few.h5")
    assert (
        code == 0 and output.count("Step 0: an atom has more neighbours than the model looks at (3 within 3.2 Å)") == 1
    )
    assert output.count("more neighbours") == 1
    for name, dropped in (("all.h5", False), ("few.h5", True)):
        with h5py.File(name) as file:
            assert file["truncated"][:].tolist() == [dropped] * 3


def test_an_explosion_keeps_the_last_good_structure(folder):
    _, _, error = run("si.extxyz", "--timestep", 200, "--temperature", 5000, "--steps", 50, "--every", 1)
    assert isinstance(error, ValueError) and "Shorten the time step (now 200 fs)" in str(error)
    assert str(error).endswith("It is in traj-last.extxyz.")
    last = ase.io.read("traj-last.extxyz")
    assert np.isfinite(last.positions).all() and f"state is that of step {last.info['step']}." in str(error)
    assert rows("traj.csv")[-1]["step"] == last.info["step"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--steps, or with --time"),
        (["--steps", "5", "--time", "1"], "--steps, or with --time"),
        (["--time", "1e-9"], "no simulation"),
        (["--steps", "5", "--pressure", "1"], "--pressure has no meaning for nvt with langevin"),
        (
            ["--steps", "5", "--thermostat", "nose_hoover", "--friction", "1"],
            "--friction has no meaning for",
        ),
        (["--steps", "5", "--ensemble", "nve", "--thermostat-time", "9"], "--thermostat-time has no meaning for nve"),
        (["--steps", "5", "--ensemble", "nve"], "temperature"),
        (["--steps", "5", "--timestep", "-1"], "timestep must be above 0, got -1"),
        (["--steps", "5", "--frame", "4"], "no --frame 4"),
        (["--steps", "5", "--output", "run.pdb"], ".traj, .h5 or .hdf5: a trajectory"),
        (["--steps", "5", "--output", "there.h5"], "there.h5 exists. Go on"),
        (["--steps", "5", "--output", "there.h5", "--resume"], "exists without there.restart"),
    ],
)
def test_mistakes_are_named(folder, arguments, message):
    Path("there.h5").write_text("something of value\n")
    _, _, error = run("si.extxyz", *arguments)
    assert isinstance(error, ValueError) and message in str(error), error
    assert Path("there.h5").read_text() == "something of value\n"
    assert not Path("traj.restart").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: [a, a], "2 structures. Choose one"),
        (lambda a: [ase.Atoms("SiAu", [(0, 0, 0), (0, 0, 2.5)])], "Au is not in"),
        (lambda a: [_heavy(a)], "masses of its own"),
    ],
)
def test_structures_that_are_not_meant_are_refused(folder, change, message):
    ase.io.write("other.extxyz", change(ase.io.read("si.extxyz")))
    _, _, error = run("other.extxyz", "--steps", 5)
    assert isinstance(error, ValueError) and message in str(error)


def _heavy(atoms: ase.Atoms) -> ase.Atoms:
    atoms.set_masses([30.0, 28.0])
    return atoms


def test_speed_and_growth_are_told(monkeypatch):
    now = iter([0.0, 20.0, 106.4, 192.8])
    monkeypatch.setattr(md_report.time, "monotonic", lambda: next(now))
    clock = md_report.Clock(0, timestep=2.0)
    assert clock.tick(50) > 0 and clock.mean is None
    assert clock.tick(550) == pytest.approx(1.0)  # 500 steps of 2 fs in 86.4 s
    assert clock.tick(1550) == pytest.approx(2.0) and clock.mean == pytest.approx(1.5)
    before, after = (
        lamjax.dynamics.Simulation(None, None, None, None, lamjax.neighbors.grid.Shapes((n, 8), 99, None), n, k)
        for n, k in ((16, 1), (24, 2))
    )
    assert "step 24" in md_report.grown(before, after) and "24/8" in md_report.grown(before, after)


COMMAND = [sys.executable, "-c", "from lamjax.cli import main; main()", "md", "model.lamjax", "si.extxyz"]
OPTIONS = ["--steps", "8000", "--every", "20", "--timestep", "0.5", "--temperature", "100"]


def begin(folder: Path, output: str, *options: str) -> subprocess.Popen:
    """The command in a process of its own."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}
    with (folder / "log").open("a") as log:
        command = [*COMMAND, *OPTIONS, "--output", output, *options]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def until(folder: Path, running: subprocess.Popen, table: str, n: int) -> None:
    """Wait until the table has more than n lines."""
    deadline = time.monotonic() + 300
    while not (folder / table).exists() or (folder / table).read_bytes().count(b"\n") <= n:
        assert running.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.005)


def test_a_killed_run_goes_on_to_the_last_digit(folder):
    """kill -9 while it writes or computes; going on, it is interrupted as with Ctrl-C, and goes on again."""
    killed = begin(folder, "killed.extxyz")
    until(folder, killed, "killed.csv", 20)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    n = Path("killed.csv").read_bytes().count(b"\n")
    assert n < 401
    stopped = begin(folder, "killed.extxyz", "--resume")
    until(folder, stopped, "killed.csv", n + 20)
    stopped.send_signal(signal.SIGINT)
    assert stopped.wait(300) == 0
    text = " ".join(Path("log").read_text().split())
    assert "Stopping as soon as" in text and "--resume goes on" in text
    assert len(ase.io.read("killed.extxyz", ":")) == len(rows("killed.csv")) < 401
    assert begin(folder, "killed.extxyz", "--resume").wait(300) == 0, Path("log").read_text()
    assert begin(folder, "whole.extxyz").wait(300) == 0
    for suffix in (".extxyz", ".csv"):
        assert Path(f"killed{suffix}").read_bytes() == Path(f"whole{suffix}").read_bytes()
    assert len(rows("whole.csv")) == 401


def test_a_committee_is_watched(folder):
    """Its deviation is that of the members' forces on the frames as they were written; a limit stops the run."""
    potential = lamjax.build(CONFIG)
    lamjax.save("other.lamjax", potential, potential.init(jax.random.key(2), np.float64))
    shared = ["si.extxyz", "--every", 10, "--committee", "other.lamjax", "--dtype", "float64", "--output", "run.h5"]
    code, output, _ = run(*shared, "--steps", 30)
    assert code == 0 and "deviation of the committee" in output, output
    watched = [row["deviation_eV_A"] for row in rows("run.csv")]
    with h5py.File("run.h5") as file:
        positions = file["positions"][:]
    atoms = ase.io.read("si.extxyz")
    for x, deviation in zip(positions, watched, strict=True):
        atoms.positions = x
        forces = []
        for name in ("model.lamjax", "other.lamjax"):
            atoms.calc = lamjax.Calculator(name, dtype="float64")
            forces.append(atoms.get_forces())
        expected = np.sqrt(np.var(forces, axis=0).sum(axis=1)).max()
        assert expected > 0 and deviation == pytest.approx(expected, rel=1e-6)

    _, _, error = run("si.extxyz", "--steps", 60, "--every", 10, "--dtype", "float64", "--output", "run.h5", "--resume")
    assert isinstance(error, ValueError) and "committee was ['other.lamjax " in str(error) and "is []" in str(error)
    Path("there").mkdir()
    Path("other.lamjax").rename("there/other.lamjax")  # the same, elsewhere
    moved = [*shared[:4], "there/other.lamjax", *shared[5:]]
    code, output, _ = run(*moved, "--steps", 40, "--resume")
    assert code == 0 and len(rows("run.csv")) == 5, output
    lamjax.save("there/other.lamjax", potential, potential.init(jax.random.key(3), np.float64))
    _, _, error = run(*moved, "--steps", 60, "--resume")
    assert isinstance(error, ValueError) and str(error).count("other.lamjax ") == 2
    lamjax.save("other.lamjax", potential, potential.init(jax.random.key(2), np.float64))
    code, output, _ = run(*shared, "--steps", 9000, "--resume", "--max-deviation", 0.5 * min(watched))
    assert code == 0 and "--max-deviation is" in output and "of 9000; --resume goes on" in output
    assert 30 < len(rows("run.csv")) * 10 < 9000
    _, _, error = run("si.extxyz", "--steps", 30, "--max-deviation", 0.1, "--output", "none.h5")
    assert isinstance(error, ValueError) and "--committee" in str(error)
