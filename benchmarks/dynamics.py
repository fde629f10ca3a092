"""A step of molecular dynamics of water in lamjax's loop, in ASE with its calculator, in ASE with DeePMD-kit's.

Then what a step costs, in time and memory, from a hundred to a hundred thousand atoms. See README.md beside this file.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from common import PRESETS, RESULTS, ROOT, hardware, usable_cores, warn_if_busy, write_results
from systems import water

from lamjax import checkpoints, edit, potential
from lamjax.interop.deepmd.write import dp_bytes
from lamjax.reports import console, table

STUDENT = ROOT.parent / "tests" / "fixtures" / "student" / "s01_strip" / "model.dp"
MODELS = {"teacher": "DPA-2 small", "student": "DPA-1 without attention, 24 features"}
CODES = {
    "loop": "lamjax, dynamics.simulate",
    "ase": "ASE, lamjax.Calculator",
    "deepmd": "ASE, DeePMD-kit's calculator",
}
TOLERANCE = 1e-5  # of the potential energy, relative: float32


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atoms", nargs="*", type=int, default=[192, 1536], help="compared; multiples of 192")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--sizes", nargs="*", type=int, default=[192, 1536, 12288, 98304], help="of the scaling")
    parser.add_argument("--scaled", default="student", choices=list(MODELS), help="the model of the scaling")
    parser.add_argument("--name", default="dynamics", help="of the file of results")
    parser.add_argument("--steps", type=int, default=20, help="of 0.5 fs in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=usable_cores())
    parser.add_argument("--deepmd-python", default=sys.executable, help="interpreter that has DeePMD-kit and ASE")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for NAME.json")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    machine = hardware(options.cores)
    warn_if_busy(console, machine, "trust processor time more.")
    settings = {"steps": options.steps, "rounds": options.rounds, "timestep_fs": 0.5, "precision": "float32"}
    results = {"hardware": machine, "date": datetime.date.today().isoformat(), "settings": settings}
    results |= {"compared": {}, "scaling": {}, "scaled": options.scaled}
    with tempfile.TemporaryDirectory() as name:
        folder = prepare(Path(name))
        for model in options.models:
            for n_atoms in options.atoms:
                rows = compared(model, n_atoms, folder, options)
                results["compared"].setdefault(model, {})[str(n_atoms)] = rows
                show_compared(model, n_atoms, rows)
                path = write_results(options.name, results, options.output)
        for n_atoms in options.sizes:
            results["scaling"][str(n_atoms)] = work("loop", options.scaled, n_atoms, folder, options)
            path = write_results(options.name, results, options.output)
    if options.sizes:
        show_scaling(options.scaled, results["scaling"])
    console.print(f"Written: {path}")


def prepare(folder: Path) -> Path:
    """One frame of real water, and the models as `.dp`; the student knows O and H only."""
    water("small").write(folder / "water.npz")
    (folder / "teacher.dp").write_bytes((PRESETS / "dpa2_small_f32.dp").read_bytes())
    stored = checkpoints.read(STUDENT)
    model = edit.restrict_elements(potential.build(stored.config), potential.cast_params(stored.params), ["O", "H"])
    config, params = model[0].config, jax.tree.map(np.asarray, model[1])
    (folder / "student.dp").write_bytes(dp_bytes(config, params, config.head_names[0]))
    return folder


def compared(model: str, n_atoms: int, folder: Path, options) -> dict[str, dict]:
    """What each code says of the same start; they must agree on its energy."""
    rows = {
        code: work(code, model, n_atoms, folder, options) for code in CODES if code != "deepmd" or has_deepmd(options)
    }
    energy = rows["loop"]["energy"]
    if wrong := {code: row["energy"] for code, row in rows.items() if abs(row["energy"] / energy - 1) > TOLERANCE}:
        raise SystemExit(f"{model}, {n_atoms} atoms: the energies differ from {energy}: {wrong}. No time counts.")
    return rows


def has_deepmd(options) -> bool:
    """True if the interpreter has DeePMD-kit."""
    return subprocess.run([options.deepmd_python, "-c", "import deepmd, ase"], capture_output=True).returncode == 0


def work(code: str, model: str, n_atoms: int, folder: Path, options) -> dict:
    """What a process of its own says: seconds of every round, energy at the start, memory, versions."""
    python, script = (sys.executable, "dynamics_runs.py")
    if code == "deepmd":
        python, script = (options.deepmd_python, "dynamics_deepmd.py")
    task = {"code": code, "model": str(folder / f"{model}.dp"), "tabulate": model == "student", "n_atoms": n_atoms}
    task |= {"water": str(folder / "water.npz"), "steps": options.steps, "rounds": options.rounds}
    done = subprocess.run(
        [python, str(ROOT / script), json.dumps(task)],
        capture_output=True,
        text=True,
        env=os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "BENCHMARK_CORES": str(options.cores)},
    )
    if done.returncode:
        raise SystemExit(f"{CODES[code]}, {model}, {n_atoms} atoms ended with:\n{done.stderr[-2000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    for kind in ("wall", "cpu"):
        result[f"{kind}_ms_per_step"] = 1e3 * float(np.median(result.pop(kind))) / options.steps
    return result


def show_compared(model: str, n_atoms: int, rows: dict[str, dict]) -> None:
    """Milliseconds a step and how many times faster the loop is."""
    columns = ["", "ms/step", "processor ms/step", "peak MB", "times the loop", "by processor time"]
    own, body = rows["loop"], []
    for code, row in rows.items():
        ratios = [row[f"{kind}_ms_per_step"] / own[f"{kind}_ms_per_step"] for kind in ("wall", "cpu")]
        times = [row["wall_ms_per_step"], row["cpu_ms_per_step"]]
        body.append((CODES[code], *(f"{t:.1f}" for t in times), f"{row['peak_mb']:.0f}", *(f"{r:.2f}" for r in ratios)))
    console.print(table(f"{MODELS[model]}, {n_atoms} atoms of water, float32", columns, body))


def show_scaling(model: str, rows: dict[str, dict]) -> None:
    """Time and memory per atom."""
    columns = ["atoms", "ms/step", "µs/atom/step", "processor µs/atom/step", "peak MB", "kB/atom"]
    body = []
    for n, row in ((int(n), row) for n, row in rows.items()):
        per_atom = [1e3 * row[f"{kind}_ms_per_step"] / n for kind in ("wall", "cpu")]
        memory = (f"{row['peak_mb']:.0f}", f"{1e3 * (row['peak_mb'] - row['idle_mb']) / n:.1f}")
        body.append((f"{n:,}", f"{row['wall_ms_per_step']:.1f}", *(f"{x:.2f}" for x in per_atom), *memory))
    console.print(table(f"{MODELS[model]} in the loop, float32", columns, body))


if __name__ == "__main__":
    main()
