"""Several devices and several processes train to the same numbers as one device."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import ase.io
import jax
import label_frames as make
import numpy as np
import pytest

from lamjax import checkpoints
from lamjax.system import to_ase

SCRIPT = Path(__file__).parent / "sharded_run.py"
CONFIG = """
model:
  elements: [Cu, O]
  descriptor: {type: dpa1, rcut: 3.0, sel: 16, neuron: [2, 4], axis_neuron: 2, tebd_dim: 2}
  heads: [[a, {neuron: [4, 4]}], [b, {neuron: [4, 4]}]]
schedule: {start_lr: 1e-2, stop_lr: 1e-3, decay_steps: 2}
steps: 5
batch_size: 3
max_programs: 1
print_every: 5
validate_every: 5
save_every: 5
precision: float64
plots: false
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two files of copper frames of two sizes, and a config with a task for each."""
    folder = tmp_path_factory.mktemp("sharded")
    for name, seed in (("a", 0), ("b", 1)):
        atoms = []
        for frame in make.copper_frames(8, seed=seed):
            atoms.append(to_ase(frame.system))
            atoms[-1].info |= {"REF_energy": float(frame.labels.energy), "REF_virial": frame.labels.virial}
            atoms[-1].arrays["REF_forces"] = frame.labels.forces
        ase.io.write(folder / f"{name}.extxyz", atoms)
    tasks = f"""tasks:
  a: {{train: [{folder}/a.extxyz], validation: [{folder}/b.extxyz]}}
  b: {{train: [{folder}/b.extxyz], batch_size: "auto:20", loss: {{start_pref_v: 0.1, limit_pref_v: 1.0}}}}
"""
    (folder / "config.yaml").write_text(CONFIG + tasks)
    return folder


def start(folder: Path, output: str, tasks_per_step: int, devices: int, *process) -> subprocess.Popen:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    changes = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    environment = os.environ | changes  # no cache: several processes at once would write the same programs
    arguments = [folder / "config.yaml", folder / output, tasks_per_step, *process]
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> dict:
    out, error = process.communicate(timeout=400)
    assert process.returncode == 0, error[-3000:]
    return json.loads(next(line for line in out.splitlines() if line.startswith("{")))


def largest_difference(one: Path, other: Path) -> float:
    a, b = (checkpoints.read(path / "model.lamjax").params for path in (one, other))
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)))


@pytest.mark.parametrize("tasks_per_step", [1, 2])
def test_four_devices_train_as_one(folder, tasks_per_step):
    one, four = f"one{tasks_per_step}", f"four{tasks_per_step}"
    assert finish(start(folder, one, tasks_per_step, 1))["devices"] == 1
    facts = finish(start(folder, four, tasks_per_step, 4))
    assert facts["devices"] == 4
    assert facts["gathered"] <= 8  # numbers of tasks and errors; never atoms: those stay where they are
    assert largest_difference(folder / one, folder / four) < 1e-12


def test_two_processes_train_as_one(folder):
    if not (folder / "one1").exists():
        finish(start(folder, "one1", 1, 1))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    both = [start(folder, "processes", 1, 1, address, 2, k) for k in range(2)]
    assert [finish(process)["devices"] for process in both] == [2, 2]
    assert largest_difference(folder / "one1", folder / "processes") < 1e-12
    assert (folder / "processes" / "lcurve.csv").read_text().count("\n") == 2  # written by one of them
