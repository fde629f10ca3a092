"""Is the shipped model good? Beside its teacher and real DFT: errors, relaxations, speed, simulations.

    python -m experiments.universal.teacher --every 8     # once, in an environment with chgnet: teacher.json
    python -m experiments.universal.evaluate --second-teacher nequix-mp-1.nqx   # once: nequix.json
    python -m experiments.universal.evaluate              # results.json, the tables of the README, relaxed.png
    python -m experiments.universal.evaluate --report     # the same, the model's own numbers from results.json

`--model` is any model that `lamjax.load` opens.
"""

import argparse
import json
import time
from collections.abc import Iterable
from typing import Any

import ase.data
import jax
import numpy as np

import lamjax
from experiments import workflow
from experiments.look import UNIVERSAL
from experiments.relaxation.sets import SETS, path
from experiments.universal import starts
from experiments.universal.train import WORK
from lamjax import data, dynamics, relaxation
from lamjax.evaluation.structures import compare, judge
from lamjax.relaxation import CellConfig, RelaxConfig
from lamjax.reports import style

OWN, CHGNET, NEQUIX = "lamjax small", "CHGNet 0.3.0", "Nequix MP-1"
TEACHERS = {CHGNET: starts.HERE / "teacher.json", NEQUIX: starts.HERE / "nequix.json"}
EVERY = 8  # the teachers relax one crystal in so many
DEFECTS = {"Si with defects": ("si_defects", 1), "Mg in YPO4": ("ypo4", 1), "h-BN with defects": ("hbn", 20)}
HEADS = ("nequix", "chgnet", "materials")
GROUPS = {  # elements by what binds them, for a table of errors
    "s block": "Li Na K Rb Cs Be Mg Ca Sr Ba",
    "3d metals": "Sc Ti V Cr Mn Fe Co Ni Cu Zn",
    "4d, 5d metals": "Y Zr Nb Mo Tc Ru Rh Pd Ag Cd Hf Ta W Re Os Ir Pt Au Hg",
    "f block": "La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Ac Th Pa U Np Pu",
    "p block": "B Al Ga In Tl C Si Ge Sn Pb P As Sb Bi",
    "O, S, Se, Te": "O S Se Te",
    "H, N, halogens": "H N F Cl Br I",
}


def held_out(model: str) -> dict[str, Any]:
    """Errors of every head that may be meant on held-out DFT frames of new compositions."""
    frames = data.read(starts.HELD_OUT)
    errors = {}
    for head in (head for head in HEADS if head in lamjax.load(model)[0].config.head_names):
        errors[f"lamjax, head {head}"] = _errors(frames, *_differences(*lamjax.load(model, head, np.float32)))
    return errors


def held_out_beside(teachers: dict[str, dict]) -> dict[str, Any]:
    """The same of the teachers, and of no model at all."""
    frames = data.read(starts.HELD_OUT)
    energies, forces = [float(f.labels.energy) for f in frames], [np.asarray(f.labels.forces) for f in frames]
    predicted = {
        name: [(one["energy"], np.array(one["forces"])) for one in teacher["held_out"]]
        for name, teacher in teachers.items()
    }
    predicted["no model"] = [(0.0, np.zeros_like(f)) for f in forces]
    return {
        name: _errors(
            frames,
            np.array([energy for energy, _ in some]) - energies,
            [one - f for (_, one), f in zip(some, forces, strict=True)],
        )
        for name, some in predicted.items()
    }


def _differences(potential, params):
    labelled = workflow.measured(potential, {"all": [str(starts.HELD_OUT)]})["all"]
    return workflow.differences(potential, params, labelled)


def _errors(frames, difference, forces) -> dict[str, Any]:
    """Energies (meV/atom) after an energy per element fitted to the frames, as the teachers' are corrected ones; forces
    in meV/Å, and those of each group of elements.
    """
    counts = workflow.compositions(frames)
    shift = np.linalg.lstsq(counts, difference, rcond=None)[0]
    left = 1000 * np.abs(difference - counts @ shift) / counts.sum(axis=1)
    sizes = 1000 * np.concatenate([np.abs(f) for f in forces])
    symbols = np.concatenate([np.array(ase.data.chemical_symbols)[f.system.numbers] for f in frames])
    groups = {name: float(sizes[np.isin(symbols, chosen.split())].mean()) for name, chosen in GROUPS.items()}
    return {"mae_e": float(left.mean()), "mae_f": float(sizes.mean()), "groups": groups}


def relaxed(model: str, every: int) -> tuple[list[dict], float]:
    """Where the strained crystals end, and the seconds that it took."""
    potential, params = lamjax.load(model)
    targets = starts.crystals(every)
    begin = [starts.strained(target, row * every) for row, target in enumerate(targets)]
    config = RelaxConfig(fmax=starts.FMAX, max_steps=starts.STEPS, cell=CellConfig())
    began, rows = time.monotonic(), []
    for row, end in enumerate(relaxation.relax_structures(potential, params, begin, config)):
        volume, rmsd = starts.away(lamjax.to_ase(end.system), targets[row])
        rows.append(
            {"number": row * every, "converged": bool(end.converged), "volume": volume, "rmsd": rmsd}
            | {"steps": int(end.n_steps), "n_atoms": len(targets[row])}
        )
    return rows, time.monotonic() - began


def simple(model: str) -> dict[str, float]:
    """V/V(experiment) - 1 of simple crystals, relaxed at variable cell; NaN if it does not converge."""
    crystals = starts.simple()
    config = RelaxConfig(fmax=starts.SIMPLE_FMAX, max_steps=starts.STEPS, cell=CellConfig())
    ends = relaxation.relax_structures(*lamjax.load(model), list(crystals.values()), config)
    return {
        name: abs(np.linalg.det(end.system.cell)) / atoms.get_volume() - 1 if end.converged else float("nan")
        for (name, atoms), end in zip(crystals.items(), ends, strict=True)
    }


def not_relaxed(every: int) -> list[dict]:
    """The starts themselves."""
    rows = []
    for row, target in enumerate(starts.crystals(every)):
        volume, rmsd = starts.away(starts.strained(target, row * every), target)
        rows.append({"number": row * every, "converged": True, "volume": volume, "rmsd": rmsd, "steps": 0})
    return rows


def summary(rows: Iterable[dict]) -> dict[str, float]:
    """Median and 90th percentile of |V/V_DFT - 1| (%) and RMSD (Å), the share converged, steps."""
    rows = list(rows)
    volume = 100 * np.abs([row["volume"] for row in rows])
    rmsd = np.array([row["rmsd"] for row in rows])
    return {
        "n": len(rows),
        "volume_median": float(np.median(volume)),
        "volume_90": float(np.quantile(volume, 0.9)),
        "rmsd_median": float(np.median(rmsd)),
        "rmsd_90": float(np.quantile(rmsd, 0.9)),
        "converged": float(np.mean([row["converged"] for row in rows])),
        "steps_median": float(np.median([row["steps"] for row in rows])),
    }


def simulations(model: str) -> list[dict[str, Any]]:
    """Drift of the energy (eV/atom/ps) of 5 ps NVE at 300 K of three crystals, in float64."""
    from ase.build import bulk

    cases = {
        "NaCl, 64 atoms": bulk("NaCl", "rocksalt", a=5.69, cubic=True).repeat(2),
        "Si, 64 atoms": bulk("Si", cubic=True).repeat(2),
        "Cu, 108 atoms": bulk("Cu", cubic=True).repeat(3),
    }
    potential, params = lamjax.load(model, dtype=np.float64)
    return [{"crystal": name, **_drift(potential, params, atoms)} for name, atoms in cases.items()]


def _drift(potential, params, atoms: ase.Atoms) -> dict[str, float]:
    """Slope of a straight line through the total energy, and what is left of it."""
    system = lamjax.from_ase(atoms)
    end = relaxation.relax_structures(potential, params, system, RelaxConfig(fmax=0.01, cell=CellConfig()))[0]
    ensemble = dynamics.nve(potential, dynamics.NVEConfig(timestep=1.0))
    simulation = dynamics.begin(ensemble, params, end.system, temperature=600.0, seed=0)
    times, energies = [], []
    for _, record in dynamics.simulate(ensemble, params, simulation, n_steps=5000, every=20):
        times += (record.step / 1000).tolist()
        energies += ((record.potential_energy + record.kinetic_energy) / len(atoms)).tolist()
    line = np.polyfit(times, energies, 1)
    return {"drift": float(line[0]), "fluctuation": float(np.std(energies - np.polyval(line, times)))}


def timed(model: str) -> tuple[list[dict], float]:
    """Where one crystal in `EVERY` ends, and atoms (energy, forces, stress of one) a second, compilations apart."""
    relaxed(model, EVERY)
    rows, seconds = relaxed(model, EVERY)
    return rows, sum(row["n_atoms"] * row["steps"] for row in rows) / seconds


def defects(model: str) -> list[dict[str, Any]]:
    """DFT's relaxations of defects: median Dq (amu^1/2 Å) of starts and ends from its ends, and how many are nearer."""
    potential, params = lamjax.load(model)
    rows = []
    for name, (key, every) in DEFECTS.items():
        dataset = SETS[key]
        pairs = [
            pair for file in dataset.files for pair in data.read_pairs(path(file), variable_cell=dataset.variable_cell)
        ][::every]
        config = RelaxConfig(fmax=0.02, max_steps=400, cell=CellConfig() if dataset.variable_cell else None)
        start = compare([pair.start for pair in pairs], pairs).dq
        end = judge(potential, params, pairs, config)
        rows.append(
            {"set": name, "n": len(pairs), "start": float(np.median(start)), "end": float(np.median(end.dq))}
            | {"nearer": float(np.mean(end.dq < start)), "converged": float(np.mean(end.converged))}
        )
    return rows


def ask(model: str) -> dict[str, Any]:
    """What a teacher says of the held-out frames and the crystals, evaluated and relaxed by lamjax."""
    frames = data.read(starts.HELD_OUT)
    difference, forces = _differences(*lamjax.load(model, dtype=np.float32))
    predicted = [
        {"energy": round(float(e + f.labels.energy), 5), "forces": np.round(d + f.labels.forces, 4).tolist()}
        for e, d, f in zip(difference, forces, frames, strict=True)
    ]
    ends, rate = timed(model)
    return {"held_out": predicted, "relaxed": ends, "simple": simple(model), "atoms a second": rate}


def draw(rows: dict[str, list[dict]], output) -> None:
    """Cumulative shares of the crystals below an error of volume and positions."""
    count = ", ".join(f"{name}: {len(crystals)}" for name, crystals in rows.items())
    with style.figure(output, (4.9, 3.8), (1, 2), caption=f"Crystals relaxed from strained starts; {count}.") as panels:
        for axes, key, scale, label, most in zip(
            panels, ("volume", "rmsd"), (100, 1), ("|V/V(DFT) - 1| (%)", "RMSD (Å)"), (15, 0.6), strict=True
        ):
            axes.set(xlabel=label, ylabel="share of crystals below", ylim=(0, 1), xlim=(0, most))
            for name, crystals in rows.items():
                values = np.sort(scale * np.abs([row[key] for row in crystals]))
                share = np.arange(1, len(values) + 1) / len(values)
                axes.step(values, share, color=UNIVERSAL[name], label=name)
        style.name_lines(panels[1])


def tables(results: dict[str, Any]) -> str:
    """The tables of the README."""
    errors = [
        (name, f"{one['mae_e']:.0f}", f"{one['mae_f']:.0f}", *(f"{x:.0f}" for x in one["groups"].values()))
        for name, one in results["held_out"].items()
    ]
    ends = [
        (
            name,
            one["n"],
            f"{one['volume_median']:.1f} ({one['volume_90']:.1f})",
            f"{one['rmsd_median']:.3f} ({one['rmsd_90']:.3f})",
            f"{100 * one['converged']:.0f}",
            f"{one['steps_median']:.0f}",
        )
        for name, one in results["relaxed"].items()
    ]
    from_dft = [
        (one["set"], one["n"], f"{one['start']:.2f}", f"{one['end']:.2f}", f"{100 * one['nearer']:.0f}")
        + (f"{100 * one['converged']:.0f}",)
        for one in results["defects"]
    ]
    runs = [(one["crystal"], f"{one['drift']:.1e}", f"{one['fluctuation']:.1e}") for one in results["nve"]]
    rates = [(name, f"{x:,.0f}") for name, x in results["speed"].items()]
    volumes = [
        (name, *(f"{100 * one[crystal]:+.0f}" if np.isfinite(one[crystal]) else "-" for crystal in starts.SIMPLE))
        for name, one in results["simple"].items()
    ]
    return "\n\n".join(
        [
            workflow.markdown(["held-out DFT frames", "energy MAE (meV/atom)", "force MAE (meV/Å)", *GROUPS], errors),
            workflow.markdown(
                [
                    "relaxed from strained starts",
                    "crystals",
                    "volume error, median (90 %) in %",
                    "RMSD, median (90 %) in Å",
                    "converged (%)",
                    "steps",
                ],
                ends,
            ),
            workflow.markdown(
                [
                    "DFT's relaxations, median Dq (amu^½ Å) from its ends",
                    "structures",
                    "starts",
                    "lamjax small",
                    "nearer than the start (%)",
                    "converged (%)",
                ],
                from_dft,
            ),
            workflow.markdown(["NVE, 5 ps at 300 K", "drift (eV/atom/ps)", "fluctuation (eV/atom)"], runs),
            workflow.markdown(["relaxing, one process", "atoms a second"], rates),
            workflow.markdown(["V/V(experiment, 300 K) - 1 (%)", *starts.SIMPLE], volumes),
        ]
    )


def main(model: str, every: int) -> None:
    """Measure the model, and report."""
    began = time.monotonic()
    ends, _ = relaxed(model, every)
    with jax.enable_x64(True):
        errors, drifts = held_out(model), simulations(model)
    results = {"held_out": errors, "nve": drifts, "speed": {OWN: timed(model)[1]}, "simple": {OWN: simple(model)}}
    results |= {"defects": defects(model), "rows": ends, "every": every}
    results |= workflow.facts(f"python -m experiments.universal.evaluate --model {model}", time.monotonic() - began)
    report(results)


def report(results: dict[str, Any]) -> None:
    """The model's own numbers beside the teachers': tables, plot, results.json."""
    teachers = {name: json.loads(path.read_text()) for name, path in TEACHERS.items() if path.is_file()}
    asked = {row["number"] for one in teachers.values() for row in one["relaxed"]}
    rows = {"not relaxed": not_relaxed(results["every"]), OWN: results["rows"]}
    if asked:
        rows |= {f"{name}, as the teachers": [row for row in rows[name] if row["number"] in asked] for name in rows}
        rows |= {name: one["relaxed"] for name, one in teachers.items()}
    own = {key: one for key, one in results["held_out"].items() if key.startswith("lamjax")}
    results["held_out"] = own | held_out_beside(teachers)
    results["relaxed"] = {name: summary(crystals) for name, crystals in rows.items()}
    for key, value in (("speed", _rate), ("simple", lambda one: one["simple"])):
        results[key] = {OWN: results[key][OWN]} | {name: value(one) for name, one in teachers.items()}
    draw({name: crystals for name, crystals in rows.items() if "as the" not in name}, starts.HERE / "relaxed.png")
    workflow.write_report(starts.HERE, results, tables(results))


def _rate(teacher: dict[str, Any]) -> float:
    """Atoms a second of a teacher: as it was measured, or of its relaxations one after another."""
    if "atoms a second" in teacher:
        return teacher["atoms a second"]
    work = sum(row["n_atoms"] * row["steps"] for row in teacher["relaxed"])
    return work / sum(row["seconds"] for row in teacher["relaxed"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="small")
    parser.add_argument("--every", type=int, default=1, help="relax one crystal in so many")
    parser.add_argument("--second-teacher", help="the weights of a teacher that lamjax opens: writes nequix.json")
    parser.add_argument("--report", action="store_true", help="from results.json, with what the teachers say now")
    options = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(WORK / "programs"))
    if options.report:
        report(json.loads((starts.HERE / "results.json").read_text()))
    elif options.second_teacher:
        TEACHERS[NEQUIX].write_text(json.dumps(ask(options.second_teacher)) + "\n")
    else:
        main(options.model, options.every)
