"""A run of the command is really killed, and goes on as if it had not been."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import jax
import label_frames as make
import numpy as np

from lamjax import checkpoints
from lamjax.system import to_ase
from lamjax.training import curve

CONFIG = """
model:
  elements: [Cu, O]
  descriptor: {type: dpa1, rcut: 3.0, sel: 16, neuron: [2, 4], axis_neuron: 2, tebd_dim: 2}
  heads: [[a, {neuron: [4, 4]}], [b, {neuron: [4, 4]}]]
schedule: {type: cosine, start_lr: 1e-2, stop_lr: 1e-3, warmup_steps: 20}
optimizer: {name: muon, max_norm: 5.0, options: {weight_decay: 0.01}}
ema_decay: 0.98
accumulate: 2
tasks_per_step: 2
steps: 600
batch_size: 2
max_programs: 1
print_every: 50
validate_every: 50
save_every: 50
plots: false
"""


def command(folder: Path, output: str, *options: str) -> subprocess.Popen:
    """`lamjax train` in a process of its own."""
    script = "import sys; from lamjax.cli import main; main()"
    arguments = ["train", str(folder / "config.yaml"), "--set", f"output={folder / output}", *options]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}
    with (folder / f"{output}.log").open("a") as log:
        return subprocess.Popen([sys.executable, "-c", script, *arguments], env=environment, stdout=log, stderr=log)


def test_a_killed_command_goes_on_bit_for_bit(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        atoms = []
        for frame in make.copper_frames(6, sizes=(1,), seed=seed):
            atoms.append(to_ase(frame.system))
            atoms[-1].info["REF_energy"] = float(frame.labels.energy)
            atoms[-1].arrays["REF_forces"] = frame.labels.forces
        ase.io.write(tmp_path / f"{name}.extxyz", atoms)
    tasks = "".join(f"  {n}: {{train: [{tmp_path}/{n}.extxyz], validation: [{tmp_path}/b.extxyz]}}\n" for n in "ab")
    (tmp_path / "config.yaml").write_text(CONFIG + "tasks:\n" + tasks)

    killed = command(tmp_path, "killed")
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "killed" / "states" / "200").is_dir():  # 100 updates of two batches
            assert killed.poll() is None and time.monotonic() < deadline, (tmp_path / "killed.log").read_text()
            time.sleep(0.01)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert not (tmp_path / "killed" / "model.lamjax").exists()

    # the programs of the first run come from the disk now: what is loaded computes what was compiled
    assert command(tmp_path, "killed", "--resume").wait(400) == 0, (tmp_path / "killed.log").read_text()
    assert command(tmp_path, "whole").wait(400) == 0, (tmp_path / "whole.log").read_text()
    for model in ("model.lamjax", "best.lamjax"):
        one, other = (checkpoints.read(tmp_path / name / model).params for name in ("whole", "killed"))
        assert jax.tree.all(jax.tree.map(np.array_equal, one, other)), model
    times = ("seconds", "structures_per_s", "atoms_per_s", "wait_fraction")
    a, b = (
        [{k: v for k, v in row.items() if k not in times} for row in curve.read(tmp_path / name / "lcurve.csv")]
        for name in ("whole", "killed")
    )
    assert a == b and [int(row["step"]) for row in a] == list(range(50, 601, 50))
