"""`lamjax finetune --objective structures`: a stored model learns where structures relax to."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from lamjax import pytree
from lamjax.cli.interrupted import resumable
from lamjax.cli.train import banner
from lamjax.reports import bars, console, progress, table, warnings_as_text
from lamjax.training import structures
from lamjax.training.fit import NonFiniteError
from lamjax.training.setup import BEST, MODEL, check_sources
from lamjax.training.structures import StructureTuneConfig, read_config
from lamjax.training.structures_judge import Summary
from lamjax.training.structures_setup import WRITTEN, TuneRun

ADJOINTS = {"unrolled": "steps_unrolled", "hybrid": "window", "until_converged": None, "implicit": None}
PERIOD = 10.0  # s between lines where there is no terminal
PLAIN = ("head", "validation", "hold_out", "group_by", "variable_cell", "epochs", "batch_size", "seed", "freeze") + (
    "output",
    "noise",
    "learn_minimiser",
)  # options that are keys of the config


def finetune_structures(base: Path, files: list[Path], given: dict[str, Any]) -> None:
    """Run to the end; `given` are the options of `lamjax finetune` that are not at their defaults."""
    content = {"base": str(base), "pairs": [str(path) for path in files], **make_content(given)}
    config = read_config(given.get("config"), content, given.get("set_") or ())
    if "config" in given:
        check_sources(config, WRITTEN, [given["config"]], given.get("resume", False))
    # x64 for positions and sums of energies; the network runs in the config's precision
    with resumable(config.output), jax.enable_x64(True):
        console.print(banner(config.precision))
        with warnings_as_text():
            run = structures.prepare(config, given.get("resume", False))
        _describe(run)
        try:
            _follow(run)
        except NonFiniteError as error:
            raise ValueError(f"{error} --resume goes on from them, with another order of the pairs.") from error
    _report(config)


def make_content(given: dict[str, Any]) -> dict[str, Any]:
    """The keys of a config that options stand for; ValueError for options that contradict each other."""
    content = {name: _plain(given[name]) for name in PLAIN if name in given}
    if "lr" in given:
        content["schedule"] = {"start_lr": given["lr"], "stop_lr": given["lr"] / 20}
    if "rate" in given:
        content["rates"] = rates(given["rate"])
    replay = {key: given[name] for key, name in (("files", "replay"), ("weight", "replay_weight")) if name in given}
    if replay:
        content["replay"] = {key: _plain(value) for key, value in replay.items()}
    objective = _objective(given)
    return content | ({"objective": objective} if objective else {})


def _objective(given: dict[str, Any]) -> dict[str, Any]:
    found = {"type": given["loss"]} if "loss" in given else {}
    steps, window = given.get("steps_unrolled"), given.get("window")
    kind = given.get("adjoint") or ("unrolled" if steps else "hybrid" if window else None)
    if kind is None:
        return found
    if kind not in ADJOINTS:
        raise ValueError(f"--adjoint {kind}: unknown; known are {', '.join(ADJOINTS)}.")
    if found.get("type", "structure") != "structure":
        raise ValueError(f"--loss {found['type']} relaxes nothing: leave --adjoint, --steps-unrolled and --window out.")
    if steps and kind != "unrolled":
        raise ValueError(f"--steps-unrolled is for --adjoint unrolled, not {kind}.")
    if window and kind != "hybrid":
        raise ValueError(f"--window is for --adjoint hybrid, not {kind}.")
    own = ({"steps": steps} if steps else {}) | ({"window": window} if window else {})
    return {"type": "structure", "relax": {"adjoint": {"type": kind, **own}}}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    return str(value) if isinstance(value, Path) else value


def rates(options: Iterable[str]) -> dict[str, float]:
    """{part: factor} of --rate PART=FACTOR."""
    found = {}
    for option in options:
        part, equals, factor = option.partition("=")
        if not equals or not part or not factor:
            raise ValueError(f"--rate takes NAME=VALUE, got {option!r}.")
        try:
            found[part] = float(factor)
        except ValueError:
            raise ValueError(f"--rate {option}: the factor must be a number, for example {part}=0.1.") from None
    return found


def _describe(run: TuneRun) -> None:
    """Data, model, shapes."""
    config, packed = run.config, run.packing.packed
    shapes = [
        f"{len(members)} of up to {shape.n_atoms} atoms, {'/'.join(map(str, shape.capacities))} neighbours"
        for shape, members in zip(packed.shapes, packed.members, strict=True)
    ]
    rows = [
        ("relaxations to learn from", len(run.sets.train)),
        ("held-out relaxations", len(run.sets.validation)),
        ("labelled frames", ", ".join(f"{len(f)} ({name})" for name, f in run.sets.frames.items()) or "none"),
        ("replayed frames", len(run.sets.replay) or "none"),
        ("objective", _objective_name(config)),
        ("parameters", f"{pytree.n_parameters(run.state.params):,}"),
        ("head", run.potential.head),
        ("programs", f"{len(shapes)}: {'; '.join(shapes)}"),
        ("steps", f"{run.done} of {run.total} done, {run.packing.per_epoch} an epoch"),
    ]
    console.print(table("Fine-tuning on structures", ["", ""], rows))


def _objective_name(config: StructureTuneConfig) -> str:
    relax, told = getattr(config.objective, "relax", None), config.objective.type
    if relax is not None:
        adjoint = relax.adjoint
        n = getattr(adjoint, "steps", None) or getattr(adjoint, "window", None)
        told += f", {adjoint.type}" + (f" ({n} steps)" if n else "") + f", {relax.minimiser.type}"
    return told + (", variable cell" if config.variable_cell else ", fixed cell")


def _follow(run: TuneRun) -> None:
    """The events of the run, as bars and lines."""
    before, last = None, time.monotonic()
    with _bars(run.total, run.done) as (advance, watch):
        for event in structures.events(run, watch):
            if isinstance(event, structures.Stepped):
                advance(event.step)
                if console.is_terminal or time.monotonic() - last < PERIOD:
                    continue
            if isinstance(event, structures.Judged) and event.step == 0:
                before = event.summary
            last = time.monotonic()
            if told := line(event, run, before):
                console.print(told, soft_wrap=True)


def line(event: structures.Event, run: TuneRun, before: Summary | None = None) -> str:
    """One event as text; empty for what need not be told."""
    match event:
        case structures.Stepped(step, row):
            dq = f"  Dq {row['dq_mean']:.4g} amu^½ Å" if "dq_mean" in row else ""
            return f"step {step}/{run.total}  loss {row['loss']:.4g}{dq}"
        case structures.Epoch(number, _, means, counts):
            said = [f"epoch {number}/{run.config.epochs}  loss {means['loss']:.4g}", *_means(means)]
            said += [f"\n  {n} structures {structures.COUNTS[key]}" for key, n in counts.items()]
            return "  ".join(said)
        case structures.Judged(step, found, _, best):
            was = "" if before is None or step == 0 else f" (before {before.dq_median:.4g})"
            share = "" if step == 0 else f"{found.improved:.0%} improved, "
            basin = "" if math.isnan(found.in_basin) else f"{found.in_basin:.0%} in the right basin, "
            return (
                f"held out, step {step}: median Dq {found.dq_median:.4g} amu^½ Å{was}, {share}{basin}"
                f"{found.converged:.0%} converged" + ("  (best so far)" if best and step else "")
            )
        case structures.Widened(n, capacities):
            slots = "; ".join("/".join(map(str, c)) for c in capacities)
            return (
                f"neighbours were missing on the way of {n} structures: from now on there is room for {slots} "
                "neighbours, which means to compile anew"
            )
        case structures.Stopped(step, best_step, best):
            return f"stopped at step {step}: no better median Dq than {best:.4g} amu^½ Å of step {best_step}"
    return ""


def _means(means: dict[str, float]) -> list[str]:
    known = {"dq_mean": "mean Dq {:.4g} amu^½ Å", "newton_dq": "Newton Dq {:.4g} amu^½ Å"}
    known |= {"force_rms": "force at the target {:.3g} eV/Å", "replay_rmse_f": "replayed forces {:.3g} eV/Å"}
    known |= {"converged": "{:.0%} converged", "grad_norm": "gradient {:.3g}"}
    minimiser = [f"{key.removeprefix('minimiser/')} {x:.4g}" for key, x in means.items() if "minimiser/" in key]
    return [text.format(means[key]) for key, text in known.items() if key in means] + minimiser


@contextlib.contextmanager
def _bars(total: int, done: int) -> Iterator[tuple[Callable[[int], None], Callable]]:
    """(what moves the bar of the training to a step, what watches relaxations); bars in a terminal, else lines."""
    if not console.is_terminal:
        yield (lambda step: None), progress
        return
    with bars() as bar:
        task = bar.add_task("training", total=total, completed=done)

        def watch(items: Iterator, what: str, n: int) -> Iterator:
            relaxing = bar.add_task(what, total=n)
            for item in items:
                bar.advance(relaxing)
                yield item
            bar.remove_task(relaxing)

        yield (lambda step: bar.update(task, completed=step)), watch


def _report(config: StructureTuneConfig) -> None:
    """The table before and after, and where everything is."""
    output = Path(config.output)
    found = structures.validations(output)
    first, last, best = found[0], found[-1], next(judged for judged in found if judged.best)
    chosen = {"before": first, f"best, step {best.step}": best, f"last, step {last.step}": last}
    console.print(
        table("Held-out structures, relaxed to convergence", ["", *chosen], rows(list(chosen.values()), config))
    )
    if best.step == 0:
        console.print(f"No epoch had a smaller median Dq than the model before: {BEST} is the model before.")
    elif len(found) > 2:
        console.print("The best was chosen by these very structures: judge it by others.", style="dim")
    console.print(f"{output / BEST}\n{output / MODEL}\n{output / structures.PLOT}", soft_wrap=True)


def rows(judged: list[structures.Judged], config: StructureTuneConfig) -> list[tuple]:
    """The lines of the table, one column for each judgement."""
    s = [one.summary for one in judged]
    found: list[tuple] = []
    for key, unit in (("dq", "Dq (amu^½ Å)"), ("rmsd", "RMSD (Å)")):
        found.append((f"median {unit}", *(getattr(x, f"{key}_median") for x in s)))
        found.append((f"mean {unit}", *(getattr(x, f"{key}_mean") for x in s)))
        found.append((f"quartiles {unit}", *(_range(getattr(x, f"{key}_q1"), getattr(x, f"{key}_q3")) for x in s)))
    if config.variable_cell:
        found.append(("median strain of the cell", *(x.strain_median for x in s)))
        found.append(("median volume error", *(f"{x.volume_median:.2%}" for x in s)))
    shares = {"improved": "improved", "in_basin": f"in the right basin (no atom {config.basin:g} Å off)"}
    shares |= {"converged": "converged"} | ({"failed": "failed"} if any(x.failed for x in s) else {})
    found += [(text, *(_share(getattr(x, key)) for x in s)) for key, text in shares.items()]
    found.append(("steps, median", *(int(x.n_steps) for x in s)))
    sets = {"heldout": "of held-out relaxations", "replay": "of replayed frames"}
    kinds = {"f": ("force RMSE", "meV/Å"), "e": ("energy RMSE (shifted)", "meV/atom"), "v": ("virial RMSE", "meV/atom")}
    for what, of in sets.items():
        for kind, (quantity, unit) in kinds.items():
            if (key := f"{what}_rmse_{kind}") in judged[0].errors:
                found.append((f"{quantity} {of} ({unit})", *(1000 * one.errors[key] for one in judged)))
    return found


def _range(low: float, high: float) -> str:
    return f"{low:.4g} to {high:.4g}"


def _share(x: float) -> str:
    return "-" if math.isnan(x) else f"{x:.0%}"
