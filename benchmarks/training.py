"""Whole training commands, wall clock from start to end: `lamjax train` against `dp --pt train` and `dp --jax train`.

The same settings, data and number of steps. See README.md beside this file.
"""

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, hardware, usable_cores, versions, warn_if_busy, write_results
from training_data import CASES, structures_per_step, training_input, write
from training_report import ratios, rows_of, scaling_rows, show, write_tables
from training_runs import run, summary

from lamjax.reports import console

CODES = ("lamjax", "pt", "jax")
COLD, WARM = "lamjax", "lamjax, warm cache"
PACKAGES = ("lamjax", "jax", "jaxlib", "numpy", "optax", "flax", "torch", "deepmd-kit")
DEVICES = (1, 2, 4)
SCALING = {"a": "auto:128", "b": 4}  # batch sizes with work for four devices


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--codes", nargs="+", default=CODES, choices=CODES)
    parser.add_argument("--dp", type=Path, default=shutil.which("dp"), help="DeePMD-kit's command, in any environment")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--display", type=int, default=50, help="steps between two lines of output, of all codes")
    parser.add_argument("--rounds", type=int, default=1, help="how often every command runs, in turn with the others")
    parser.add_argument("--limit", type=float, default=900, help="seconds after which a command is stopped")
    parser.add_argument("--cores", type=int, default=usable_cores(), help="cores that every command may use")
    parser.add_argument("--scaling", action="store_true", help="lamjax alone on 1, 2 and 4 virtual devices instead")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for training.json")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="file whose table is written anew")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])  # commands inherit it
    machine = hardware(options.cores)
    warn_if_busy(console, machine, "no time here is worth much.")
    results = read_results(options.output)
    for case in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            files = prepare(case, Path(folder), options)
            measure = measure_scaling if options.scaling else measure_codes
            measure(case, files, results, {**machine, "date": datetime.date.today().isoformat()}, options)
    show(results)
    if options.readme.exists():
        write_tables(results, options.readme)


def read_results(folder: Path) -> dict[str, Any]:
    """What earlier runs measured: parts are replaced one by one."""
    path = folder / "training.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    return {"cases": CASES, "runs": earlier.get("runs", {}), "scaling": earlier.get("scaling", {})}


def prepare(case: str, folder: Path, options) -> dict[str, Any]:
    """The data of a case, the input of DeePMD-kit, and lamjax's config converted from it."""
    systems = write(case, folder / "data")
    content = training_input((folder / "data").iterdir(), options.steps, min(options.display, options.steps))
    (folder / "input.json").write_text(json.dumps(content, indent=1))
    subprocess.run(
        [lamjax(), "convert", "input.json", "config.yaml"], cwd=folder, check=True, stdout=subprocess.DEVNULL
    )
    atoms = [n for n, frames in systems.values() for _ in range(frames)]
    facts = {"structures": len(atoms), "atoms": sum(atoms), "least": min(atoms), "most": max(atoms)}
    console.print(f"({case}) {CASES[case]}: {facts['structures']} structures, {len(systems)} systems")
    return {"folder": folder, "facts": facts, "per_step": structures_per_step(systems)}


def lamjax() -> Path:
    """The command of the library that this interpreter has."""
    return Path(sys.executable).with_name("lamjax")


def commands(options) -> dict[str, tuple[list, dict[str, str]]]:
    """{row: (command, environment)} of everything that is to be compared; lamjax cold comes before warm."""
    rows = {}
    if "lamjax" in options.codes:
        command = [lamjax(), "train", "../config.yaml", "--set", "plots=false"]
        rows |= {COLD: (command, threads(options.cores)), WARM: (command, threads(options.cores))}
    others = [code for code in options.codes if code != "lamjax"]
    if others and options.dp is None:
        console.print("DeePMD-kit's `dp` was not found: lamjax is measured alone. --dp names it (README.md).")
        return rows
    for code in others:
        command = [options.dp.resolve(), f"--{code}", "train", "../input.json"]
        for n in sorted({1, options.cores}) if code == "pt" else [options.cores]:
            name = f"{code}, {n} thread{'s' * (n > 1)}" if code == "pt" else code
            rows[name] = (command, threads(n))
    return rows


def threads(n: int) -> dict[str, str]:
    """The environment of a command with n threads, without settings of ours for jax; compilations are logged."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "DP_"))}
    kept |= {"OMP_NUM_THREADS": str(n), "DP_INTRA_OP_PARALLELISM_THREADS": str(n)}
    kept |= {"DP_INTER_OP_PARALLELISM_THREADS": "1", "JAX_LOG_COMPILES": "1"}
    return kept | {"PYTHONUNBUFFERED": "1", "COLUMNS": "250", "TERM": "dumb"}


def measure_codes(case: str, files: dict, results: dict, machine: dict, options) -> None:
    """Every command in turn, round after round; each result is written as soon as it is there."""
    todo = commands(options)
    label = f"{options.cores} core{'s' * (options.cores > 1)}"
    place = results["runs"].setdefault(label, {}).setdefault(case, {"facts": files["facts"], "codes": {}})
    place["facts"] = files["facts"]
    runs: dict[str, list[dict]] = {name: [] for name in todo}
    for turn in range(options.rounds):
        cache = files["folder"] / f"cache{turn}"  # empty in every round
        for name, (command, environment) in todo.items():
            if name in (COLD, WARM):
                environment = {**environment, "JAX_COMPILATION_CACHE_DIR": str(cache)}
            one = once(f"({case}) {name}", command, environment, files, options)
            runs[name].append(one)
            rounds = sorted(runs[name], key=lambda r: r["wall_all_steps"] or r["wall"])
            about = {"machine": machine, "versions": code_versions(name, options), "wanted": options.steps}
            place["codes"][name] = {**rounds[(len(rounds) - 1) // 2], "rounds": runs[name], **about}
            place["ratio"] = ratios(place["codes"])
            write_results("training", results, options.output)


def once(title: str, command: list, environment: dict[str, str], files: dict, options) -> dict[str, Any]:
    """One command in a folder of its own, and what it was measured to take."""
    with tempfile.TemporaryDirectory(dir=files["folder"]) as folder:
        output = run(command, Path(folder), environment, options.limit)
        one = summary(output, options.steps, Path(folder))
    if epoch := one.pop("batches_per_epoch", None):
        one["structures_per_step"] = files["facts"]["structures"] / epoch
    else:
        one["structures_per_step"] = files["per_step"]
    console.print(f"  {title}: " + ", ".join(rows_of(one)), soft_wrap=True)
    return one


def code_versions(name: str, options) -> dict[str, str]:
    """Versions of the packages that a command uses, asked from its own interpreter."""
    if name in (COLD, WARM):
        return versions(PACKAGES)
    script = f"import json, sys; sys.path.insert(0, {str(ROOT)!r}); from common import versions; "
    script += f"print(json.dumps(versions({PACKAGES!r})))"
    python = options.dp.with_name("python")
    answer = subprocess.run([python, "-c", script], capture_output=True, text=True)
    return json.loads(answer.stdout) if answer.returncode == 0 else {}


def measure_scaling(case: str, files: dict, results: dict, machine: dict, options) -> None:
    """lamjax on 1, 2 and 4 virtual devices of this machine, with the same batches."""
    if case not in SCALING:
        console.print(f"({case}) has batches of one structure: nothing to spread over devices.")
        return
    place = results["scaling"][case] = {"machine": machine, "batch_size": SCALING[case], "devices": {}}
    command = [lamjax(), "train", "../config.yaml", "--set", "plots=false", "--set", f"batch_size={SCALING[case]}"]
    for n in DEVICES:
        environment = threads(options.cores) | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={n}"}
        environment["JAX_COMPILATION_CACHE_DIR"] = str(files["folder"] / f"cache{n}")  # empty
        one = once(f"({case}) {n} virtual devices", command, environment, files, options)
        speed = one["structures_per_step"] / one["seconds_per_step"] if one["seconds_per_step"] else None
        place["devices"][str(n)] = {**one, "structures_per_second": speed}
        write_results("training", results, options.output)
    console.print(*scaling_rows({case: place}), sep="\n", soft_wrap=True)


if __name__ == "__main__":
    main()
