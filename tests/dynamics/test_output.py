"""What a simulation writes: read back by ASE and by lamjax, cut to a step, and gone on with to the last digit."""

import csv
import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import ase
import ase.build
import ase.io
import h5py
import jax
import numpy as np
import pytest
from ase.constraints import FixAtoms, FixCartesian

import lamjax
from lamjax import classical, dynamics, units
from lamjax.dynamics import NPTConfig, NVEConfig, NVTConfig, Output, Scene, hdf5
from lamjax.system import fixed_components

MORSE = classical.morse(depth=0.34, width=1.36, distance=2.87, cutoff=3.6, switch_start=3.0)
PARAMS = MORSE.init(jax.random.key(0), np.float64)
SUFFIXES = (".extxyz", ".traj", ".h5")
ENSEMBLES = {
    "nve": dynamics.nve(MORSE, NVEConfig(2.0)),
    "langevin": dynamics.nvt(MORSE, NVTConfig(2.0, 500.0)),
    "chain": dynamics.nvt(MORSE, NVTConfig(2.0, 500.0, "nose_hoover")),
    "npt": dynamics.npt(MORSE, NPTConfig(2.0, 500.0)),
}


def copper(dtype=np.float64) -> lamjax.System:
    atoms = ase.build.bulk("Cu", "fcc", a=3.6, cubic=True)
    atoms.rattle(0.03, seed=0)
    return lamjax.from_ase(atoms, dtype)


def start(path: Path, ensemble, fixed=None, system=None):
    """A simulation of a few atoms, and its files."""
    system = copper() if system is None else system
    simulation = dynamics.begin(ensemble, PARAMS, system, temperature=600, seed=3, fixed=fixed)
    scene = Scene(system, np.asarray(simulation.fixed), ensemble.config.timestep)
    return simulation, Output(path, scene, dynamics.identity(ensemble, PARAMS))


def write(output: Output, ensemble, simulation, n_steps: int, every: int = 5):
    """All of a run; where it ends, and all that was seen."""
    parts, end = [], simulation
    for end, seen in dynamics.simulate(ensemble, PARAMS, simulation, n_steps, every):
        output.write(end, seen)
        parts.append(seen)
    return end, dynamics.Record(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def table(output: Output) -> list[dict[str, str]]:
    return list(csv.DictReader(output.paths.table.read_text().splitlines()))


@pytest.mark.parametrize("suffix", [".extxyz", ".xyz", ".traj"])
def test_ase_and_lamjax_read_what_was_seen(tmp_path, suffix):
    """Units and signs by ASE's own formulas; lamjax's labels are those of the potential, without the motion."""
    fixed = np.zeros((4, 3), bool)
    fixed[0], fixed[1, 2] = True, True
    ensemble = ENSEMBLES["langevin"]
    path = tmp_path / f"run{suffix}"
    simulation, output = start(path, ensemble, fixed)
    output.begin(simulation)
    _, seen = write(output, ensemble, simulation, 20)
    structures, calculator = ase.io.read(path, ":"), lamjax.Calculator((MORSE, PARAMS))
    assert [atoms.info["step"] for atoms in structures] == [5, 10, 15, 20]
    assert structures[1].info["time"] == pytest.approx(0.02)
    for k, atoms in enumerate(structures):
        assert atoms.get_potential_energy() == pytest.approx(seen.potential_energy[k], abs=1e-7)
        assert atoms.get_kinetic_energy() == pytest.approx(seen.kinetic_energy[k], abs=1e-6)
        np.testing.assert_allclose(atoms.get_stress(include_ideal_gas=True), seen.stress[k], atol=1e-7)
        np.testing.assert_allclose(atoms.get_forces(apply_constraint=False), seen.forces[k], atol=1e-7)
        np.testing.assert_allclose(atoms.positions, seen.positions[k], atol=1e-7)
        np.testing.assert_array_equal(fixed_components(atoms), fixed)
        again = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True, calculator=calculator)
        np.testing.assert_allclose(atoms.get_stress(), again.get_stress(), atol=1e-7)
        np.testing.assert_allclose(atoms.get_forces(apply_constraint=False), again.get_forces(), atol=1e-5)
    frames = lamjax.data.read(path)
    assert [frame.keys for frame in frames] == [("energy", "forces", "stress")] * 4
    virial = -units.from_voigt(structures[2].get_stress()) * structures[2].get_volume()
    np.testing.assert_allclose(frames[2].labels.virial, virial, atol=1e-9)
    np.testing.assert_allclose(frames[2].labels.forces, seen.forces[2], atol=1e-7)


def test_hdf5_holds_every_digit_and_its_units(tmp_path):
    ensemble = ENSEMBLES["npt"]
    simulation, output = start(tmp_path / "run.h5", ensemble)
    output.begin(simulation)
    _, seen = write(output, ensemble, simulation, 22)
    with h5py.File(tmp_path / "run.h5") as file:
        for name, values in seen._asdict().items():
            np.testing.assert_array_equal(file[name], values)
            assert file[name].maxshape[0] is None
        assert file["positions"].attrs["unit"].startswith("Å") and file.attrs["timestep_fs"] == 2.0
        assert list(file["numbers"]) == [29] * 4 and list(file["step"]) == [5, 10, 15, 20, 22]


def test_the_table_holds_every_digit(tmp_path):
    ensemble = ENSEMBLES["npt"]
    simulation, output = start(tmp_path / "run.traj", ensemble)
    output.begin(simulation)
    output.write(simulation, dynamics.observe(ensemble, PARAMS, simulation))
    _, seen = write(output, ensemble, simulation, 10)
    rows = table(output)
    assert [int(row["step"]) for row in rows] == [0, 5, 10]
    for row, k in ((rows[1], 0), (rows[2], 1)):
        assert float(row["time_ps"]) == pytest.approx(seen.step[k] * 2e-3)
        assert float(row["conserved_eV"]) == seen.conserved[k] and float(row["temperature_K"]) == seen.temperature[k]
        assert float(row["pressure_GPa"]) == pytest.approx(seen.pressure[k] / units.GPA)
        assert float(row["total_eV"]) == seen.potential_energy[k] + seen.kinetic_energy[k]
    assert float(rows[0]["temperature_K"]) == pytest.approx(600)
    assert float(rows[0]["volume_A3"]) == pytest.approx(3.6**3)


def contents(path: Path):
    """What a trajectory holds, to be compared."""
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return {name: np.asarray(values).tolist() for name, values in file.items()}
    if path.suffix == ".traj":
        names = ("positions", "momenta")
        return [
            [atoms.info, atoms.calc.results["energy"], *(atoms.arrays[name].tolist() for name in names)]
            for atoms in ase.io.read(path, ":")
        ]
    return path.read_bytes()


@pytest.mark.parametrize(("suffix", "name"), [*zip((*SUFFIXES, ".h5"), ENSEMBLES, strict=True)])
def test_a_stopped_simulation_goes_on_to_the_last_digit(tmp_path, suffix, name):
    """What was written after the restart file is cut off; every ensemble, every format."""
    ensemble = ENSEMBLES[name]
    simulation, output = start(tmp_path / f"whole{suffix}", ensemble)
    output.begin(simulation)
    write(output, ensemble, simulation, 120)

    simulation, output = start(tmp_path / f"killed{suffix}", ensemble)
    output.begin(simulation)
    middle, _ = write(output, ensemble, simulation, 45)
    kept = output.paths.restart.read_bytes()
    write(output, ensemble, middle, 30)
    output.paths.restart.write_bytes(kept)  # as if it had been killed before the last restart file
    with output.paths.table.open("a") as file:
        file.write("80,0.16,-1")
    resumed = output.resume(ensemble, PARAMS)
    assert resumed.step == 45
    write(output, ensemble, resumed, 75)
    for kind in (suffix, ".csv"):
        assert contents(tmp_path / f"whole{kind}") == contents(tmp_path / f"killed{kind}")


def test_resuming_an_untouched_simulation_changes_nothing(tmp_path):
    for suffix in SUFFIXES:
        ensemble = ENSEMBLES["nve"]
        simulation, output = start(tmp_path / suffix[1:] / f"run{suffix}", ensemble)
        output.begin(simulation)
        assert output.resume(ensemble, PARAMS).step == 0  # before anything was seen
        end, _ = write(output, ensemble, simulation, 20)
        before = output.paths.trajectory.read_bytes(), output.paths.table.read_bytes()
        resumed = output.resume(ensemble, PARAMS)
        assert (output.paths.trajectory.read_bytes(), output.paths.table.read_bytes()) == before
        same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), resumed, end)
        assert jax.tree.all(same)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e, p, s: (dynamics.nve(MORSE, NVEConfig(1.0)), p, s), r"timestep was 2\.0, is 1\.0"),
        (lambda e, p, s: (dynamics.nvt(MORSE, NVTConfig(2.0)), p, s), "ensemble was nve, is nvt"),
        (lambda e, p, s: (e, jax.tree.map(lambda x: 1.1 * x, p), s), "another model"),
        (lambda e, p, s: (e, p, s._replace(positions=s.positions + 0.1)), "another structure"),
        (lambda e, p, s: (e, p, copper(np.float32)), "another precision"),
        (lambda e, p, s: (e, p, lamjax.from_ase(ase.build.bulk("Cu", cubic=True) * (2, 1, 1))), "number of atoms"),
    ],
)
def test_a_restart_file_of_another_simulation_is_refused(tmp_path, change, message):
    ensemble = ENSEMBLES["nve"]
    simulation, output = start(tmp_path / "run.traj", ensemble)
    output.begin(simulation)
    ensemble, params, system = change(ensemble, PARAMS, copper())
    with pytest.raises(ValueError, match=message):
        dynamics.restore(output.paths.restart, ensemble, params, system)


def test_files_that_are_damaged_or_in_the_way_are_refused(tmp_path):
    ensemble = ENSEMBLES["nve"]
    simulation, output = start(tmp_path / "run.extxyz", ensemble)
    output.begin(simulation)
    with pytest.raises(ValueError, match="exists. Go on with it"):
        output.begin(simulation)
    write(output, ensemble, simulation, 10)
    output.paths.trajectory.write_text("4\n")
    with pytest.raises(ValueError, match="changed or removed"):
        output.resume(ensemble, PARAMS)
    output.paths.restart.write_bytes(output.paths.restart.read_bytes()[:-50])
    with pytest.raises(ValueError, match="damaged"):
        output.resume(ensemble, PARAMS)
    output.paths.restart.write_bytes(b"pickle")
    with pytest.raises(ValueError, match="no restart file"):
        output.resume(ensemble, PARAMS)
    with pytest.raises(ValueError, match=r"\.traj \(ASE\) or \.h5"):
        start(tmp_path / "run.pdb", ensemble)


def fake(step: int, n: int = 2) -> dynamics.Record:
    """A record of a few steps."""
    x = np.random.default_rng(step)
    shapes = [(), (), (), (6,), (), (), (4, 3), (4, 3), (3, 3), (4, 3)]
    values = (x.normal(size=(n, *shape)) for shape in shapes)
    return dynamics.Record(np.arange(step, step + n), *values, truncated=np.arange(n) > 0)


def append_and_die(path: Path) -> None:
    """Killed while the file is open and half of the quantities of the next frames are in it."""
    grow, grown = h5py.Dataset.resize, []

    def resize(self, *args, **kwargs):
        grow(self, *args, **kwargs)
        self.file.flush()
        grown.append(self)
        if len(grown) == 15:  # 11 quantities in the first call
            signal.raise_signal(signal.SIGKILL)

    h5py.Dataset.resize = resize
    hdf5.append(path, fake(0), {"numbers": np.full(4, 29)}, 1.0)
    hdf5.append(path, fake(2), {}, 1.0)


def fill_the_disk(path: Path) -> None:
    """Files may have so many bytes, no more."""
    hdf5.BLOCK = 500
    hdf5.append(path, fake(0), {"numbers": np.full(4, 29)}, 1.0)
    limit = path.stat().st_size + 80_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for step in range(2, 1000, 2):
        hdf5.append(path, fake(step), {}, 1.0)


def in_a_process(what: str, path: Path) -> subprocess.CompletedProcess:
    script = "import sys; sys.path[:0] = sys.argv[3:]; from pathlib import Path; import test_output; "
    script += "getattr(test_output, sys.argv[1])(Path(sys.argv[2]))"
    places = [str(Path(__file__).parent), str(Path(lamjax.__file__).parents[1])]
    return subprocess.run([sys.executable, "-c", script, what, str(path), *places], capture_output=True, text=True)


def test_an_hdf5_file_survives_a_kill_in_the_middle_of_writing(tmp_path):
    path = tmp_path / "run.h5"
    assert in_a_process("append_and_die", path).returncode == -signal.SIGKILL
    with pytest.raises(OSError, match="SWMR|already open"):
        h5py.File(path, "r")
    with h5py.File(path, "r", swmr=True) as file:
        assert list(file["step"]) == [0, 1] and len(file["forces"]) == 4
    hdf5.cut(path, {"frames": 2})
    hdf5.append(path, fake(2), {}, 1.0)
    with h5py.File(path) as file:
        assert list(file["step"]) == [0, 1, 2, 3] and list(file["numbers"]) == [29] * 4
        np.testing.assert_array_equal(file["forces"], np.concatenate([fake(0).forces, fake(2).forces]))
        assert file["cell"].attrs["unit"] and file.attrs["timestep_fs"] == 1.0


def test_who_reads_an_hdf5_file_does_not_stop_who_writes(tmp_path):
    path = tmp_path / "run.h5"
    hdf5.append(path, fake(0), {"numbers": np.full(4, 29)}, 1.0)
    with path.open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)  # as HDF5 does
        hdf5.append(path, fake(2), {}, 1.0)
        assert hdf5.mark(path) == {"frames": 4}


def test_a_full_disk_leaves_the_hdf5_file_as_it_was(tmp_path):
    """HDF5 itself would end the process with a segmentation fault."""
    path = tmp_path / "run.h5"
    done = in_a_process("fill_the_disk", path)
    assert done.returncode == 1 and done.stderr.strip().endswith("File too large"), done.stderr
    with h5py.File(path) as file:
        n = len(file["step"])
        assert n > 2 and all(len(file[name]) == n for name in hdf5.UNITS)
        np.testing.assert_array_equal(file["step"], np.arange(n))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("which", [1, 2, 3])
def test_a_disk_that_is_full_anywhere_loses_no_more_than_a_chunk(tmp_path, monkeypatch, suffix, which):
    """The table, the trajectory or the restart file cannot be flushed; then there is room again."""
    ensemble, flush, calls = ENSEMBLES["nve"], os.fsync, []
    simulation, output = start(tmp_path / f"run{suffix}", ensemble)
    output.begin(simulation)
    simulation, _ = write(output, ensemble, simulation, 10)

    def full(handle):
        calls.append(handle)
        if len(calls) == which:
            raise OSError(errno.ENOSPC, "No space left on device")
        return flush(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(output, ensemble, simulation, 10)
    monkeypatch.undo()
    resumed = output.resume(ensemble, PARAMS)
    assert resumed.step == 10
    write(output, ensemble, resumed, 10)
    assert [int(row["step"]) for row in table(output)] == [5, 10, 15, 20]
    if suffix != ".h5":
        assert [atoms.info["step"] for atoms in ase.io.read(output.paths.trajectory, ":")] == [5, 10, 15, 20]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_constraints_are_those_that_were_read():
    atoms = ase.build.bulk("Cu", cubic=True)
    atoms.set_constraint([FixAtoms([1]), FixCartesian([2], [True, False, True])])
    fixed = fixed_components(atoms)
    atoms.set_constraint(lamjax.system.constraints(fixed))
    np.testing.assert_array_equal(fixed_components(atoms), fixed)
    assert not lamjax.system.constraints(np.zeros((4, 3), bool))


def test_hdf5_names_a_unit_for_every_quantity():
    assert tuple(hdf5.UNITS) == dynamics.Record._fields
