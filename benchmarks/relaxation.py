"""500 real crystals of 1 to 50 atoms relaxed: lamjax's stream, ASE's FIRE with lamjax's calculator, torch-sim.

See README.md beside this file.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import ase.build
import ase.io
import numpy as np
from ase.neighborlist import neighbor_list
from common import RESULTS, ROOT, hardware, usable_cores, warn_if_busy, write_results

import lamjax
from lamjax.reports import console, table

DATA = ROOT.parent / "experiments" / "data"
SETS = ("pbe_main_group/train", "pbe_main_group/test", "materials_pbeu/train", "metals_pbe/train")
ELEMENTARY = ("Al", "Li", "Mo", "Ca", "K", "Na")  # one atom in a primitive cell
MODEL = Path(lamjax.__file__).parent / "assets" / "demo" / "base.lamjax"
BOND = 2.5  # Å, the shortest distance in a crystal of the pair potential, at its minimum
PAIR = {"sigma": BOND / 2 ** (1 / 6), "epsilon": 0.3, "cutoff": 6.0, "start": 4.8}  # Å, eV


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=int, default=500)
    parser.add_argument("--subset", type=int, default=100, help="of them for ASE, at random; its times are scaled")
    parser.add_argument("--tasks", nargs="+", default=["model", "pair"], choices=["model", "pair"])
    parser.add_argument("--cell", action="store_true", help="relax the cells too")
    parser.add_argument("--fmax", type=float, default=0.05, help="eV/Å")
    parser.add_argument("--max-steps", type=int, default=300)
    parser.add_argument("--atoms", type=int, default=1024, help="in flight in torch-sim")
    parser.add_argument("--cores", type=int, default=usable_cores())
    parser.add_argument("--torch-sim-python", default=sys.executable, help="interpreter that has torch-sim")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for relaxation.json")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    machine = hardware(options.cores)
    warn_if_busy(console, machine, "trust processor time more.")
    with tempfile.TemporaryDirectory() as folder:
        sizes = prepare(Path(folder), options)
        tasks = {}
        if "model" in options.tasks:
            tasks["model"] = {name: work(name, Path(folder), options) for name in ("stream", "ase")}
        if "pair" in options.tasks:
            tasks["pair"] = {"stream": work("pair", Path(folder), options)}
            if has_torch_sim(options):
                tasks["pair"]["torch-sim"] = work("torch-sim", Path(folder), options)
    settings = {"fmax": options.fmax, "max_steps": options.max_steps, "cell": options.cell, "pair": PAIR}
    results = {"hardware": machine, "date": datetime.date.today().isoformat(), "settings": settings}
    results |= {"sizes": {"least": min(sizes), "median": float(np.median(sizes)), "most": max(sizes)}}
    for task, rows in tasks.items():
        show(task, rows, len(sizes), results.setdefault("tables", {}))
    name = "relaxation_cell" if options.cell else "relaxation"
    console.print(f"Written: {write_results(name, results, options.output)}")


def prepare(folder: Path, options) -> list[int]:
    """The crystals as they are, and scaled for the pair potential; settings. Their numbers of atoms."""
    crystals = selection(options.structures)
    scaled = [with_bond(atoms) for atoms in crystals]
    ase.io.write(folder / "crystals.extxyz", crystals, columns=["symbols", "positions"])
    ase.io.write(folder / "scaled.extxyz", scaled, columns=["symbols", "positions"])
    read_back = ase.io.read(folder / "scaled.extxyz", ":")
    arrays = {f"{name}{k}": x for k, a in enumerate(read_back) for name, x in facts(a).items()}
    np.savez(folder / "scaled.npz", n=len(scaled), **arrays)
    chosen = np.random.default_rng(0).permutation(len(crystals))[: options.subset]
    names = ("fmax", "max_steps", "cell", "atoms", "cores")
    settings = {name: getattr(options, name) for name in names} | {"pair": PAIR, "model": str(MODEL)}
    (folder / "settings.json").write_text(json.dumps(settings | {"subset": chosen.tolist()}))
    return [len(atoms) for atoms in crystals]


def selection(n: int) -> list[ase.Atoms]:
    """Different crystals of at most 50 atoms, of elements that the model knows, in an order drawn once."""
    known = set(lamjax.load(MODEL)[0].elements)
    distinct = {}
    for atoms in [*(a for name in SETS for a in ase.io.read(DATA / f"{name}.extxyz.gz", ":")), *elementary()]:
        if atoms.pbc.all() and len(atoms) <= 50 and set(atoms.symbols) <= known:
            bare = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
            distinct.setdefault((bare.get_chemical_formula(), round(bare.get_volume(), 3)), bare)
    crystals = list(distinct.values())
    if len(crystals) < n:
        console.print(f"There are {len(crystals)} different crystals; the rest are displaced by 0.1 Å once more.")
    rng = np.random.default_rng(0)
    more = [rattled(crystals[k], int(k)) for k in rng.permutation(len(crystals))[: max(0, n - len(crystals))]]
    chosen = [*crystals, *more]
    return [chosen[k] for k in rng.permutation(len(chosen))[:n]]


def elementary() -> list[ase.Atoms]:
    """Crystals of one atom, strained by 3 % at most."""
    rng, crystals = np.random.default_rng(0), []
    for atoms in (ase.build.bulk(symbol) for symbol in ELEMENTARY):
        strain = rng.uniform(-0.03, 0.03, (3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        crystals.append(atoms)
    return crystals


def rattled(atoms: ase.Atoms, seed: int) -> ase.Atoms:
    atoms = atoms.copy()
    atoms.rattle(0.1, seed=seed)
    return atoms


def with_bond(atoms: ase.Atoms) -> ase.Atoms:
    """Scaled so that the shortest distance is that of the minimum of the pair potential."""
    shortest = neighbor_list("d", atoms, 8.0).min()
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell.array * BOND / shortest, scale_atoms=True)
    return atoms


def facts(atoms: ase.Atoms) -> dict[str, np.ndarray]:
    return {"numbers": atoms.numbers, "positions": atoms.positions, "cell": atoms.cell.array}


def has_torch_sim(options) -> bool:
    """True if the interpreter has it; a note if it has not."""
    installed = (
        subprocess.run([options.torch_sim_python, "-c", "import torch_sim"], capture_output=True).returncode == 0
    )
    if not installed:
        console.print("torch-sim is not installed here: lamjax is measured alone. --torch-sim-python names another.")
    return installed


def work(task: str, folder: Path, options) -> dict:
    """What a worker says; its passes, peak memory and versions."""
    python = options.torch_sim_python if task == "torch-sim" else sys.executable
    script = [ROOT / "relaxation_torchsim.py"] if task == "torch-sim" else [ROOT / "relaxation_runs.py", task]
    tunables = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # for all of them; the lamjax command sets it itself
    done = subprocess.run(
        [python, *map(str, script), str(folder)],
        capture_output=True,
        text=True,
        env=os.environ | tunables,
    )
    if done.returncode:
        raise SystemExit(f"{task} failed:\n{done.stderr[-3000:]}")
    console.print(f"{task} done")
    return json.loads(done.stdout.splitlines()[-1])


def show(task: str, rows: dict[str, dict], n: int, tables: dict) -> None:
    """One table a task, and how lamjax's stream compares with the other."""
    body = {name: [summary(one, n) for one in row["passes"]] for name, row in rows.items()}
    title = "DPA-2, float32" if task == "model" else "Lennard-Jones, float64"
    columns = [
        "",
        "pass",
        "structures",
        "converged",
        "evaluations",
        "wall s",
        "cpu s",
        "wall s for all",
        "ms/evaluation",
    ]
    cells = [
        (name, k + 1, s["structures"], s["converged"], s["evaluations"], s["wall"], s["cpu"], s["all"], s["per"])
        for name, passes in body.items()
        for k, s in enumerate(passes)
    ]
    console.print(table(f"{title} (pass 1 compiles)", columns, cells))
    tables[task] = {name: {"passes": body[name]} | {k: rows[name][k] for k in ("peak_mb", "versions")} for name in rows}
    for name in rows:
        console.print(f"{name}: peak {rows[name]['peak_mb']:.0f} MB")
    for name in set(rows) - {"stream"}:
        for k, (own, other) in enumerate(zip(body["stream"], body[name], strict=True)):
            console.print(
                f"pass {k + 1}: stream is {other['all'] / own['all']:.2f} times as fast as {name} "
                f"(processor time {other['all_cpu'] / own['all_cpu']:.2f}, "
                f"per evaluation {other['per'] / own['per']:.2f})"
            )
        tables[task][name]["agreement"] = agreement(rows["stream"], rows[name])
        console.print(f"energies: {tables[task][name]['agreement']}")


def summary(one: dict, n: int) -> dict:
    """Of a pass; `all` is its time for n structures, at the mean of those that it relaxed."""
    relaxed = len(one["energies"])
    evaluations = one.get("evaluations") or sum(one["steps"]) + relaxed
    scale = n / relaxed
    return {
        "structures": relaxed,
        "converged": sum(one["converged"]),
        "evaluations": evaluations,
        "wall": one["wall"],
        "cpu": one["cpu"],
        "all": one["wall"] * scale,
        "all_cpu": one["cpu"] * scale,
        "per": 1e3 * one["wall"] / evaluations,
    }


def agreement(own: dict, other: dict) -> dict:
    """Differences of the energies of structures that both relaxed to convergence, per structure (eV)."""
    first, second = own["passes"][-1], other["passes"][-1]
    chosen = second.get("subset", range(len(first["energies"])))
    pairs = [
        (first["energies"][k], second["energies"][place])
        for place, k in enumerate(chosen)
        if first["converged"][k] and second["converged"][place]
    ]
    difference = np.abs(np.subtract(*np.transpose(pairs)))
    begun = [(a, b) for a, b in zip(first["starts"], second.get("starts", ()), strict=False)]
    return {
        "largest_relative_difference_before": max((abs(a - b) / max(1, abs(a)) for a, b in begun), default=None),
        "both_converged": len(pairs),
        "median_difference": float(np.median(difference)),
        "same_minimum": int(np.sum(difference < 0.01)),
    }


if __name__ == "__main__":
    main()
