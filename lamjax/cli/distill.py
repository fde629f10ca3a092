"""`lamjax distill`: a small model learns from a large one, from quantum chemistry, or from files."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import typer
from rich.markup import escape

from lamjax import checkpoints, distillation
from lamjax.cli import reading
from lamjax.cli.final_report import at_end
from lamjax.cli.interrupted import resumable
from lamjax.cli.labeller import HELP, OPTION_HELP, labeller_config
from lamjax.cli.option_groups import with_groups
from lamjax.cli.rounds_table import COLUMNS, MODELS, cells, model_cells
from lamjax.cli.train import banner
from lamjax.data import ReadOptions
from lamjax.distillation import TEMPLATE, DistillConfig, StudentConfig
from lamjax.distillation.outcome import RESULT
from lamjax.reports import bars, console, table, warnings_as_text
from lamjax.training.config import apply, read, validate
from lamjax.training.config import schema as config_schema
from lamjax.training.folder import check_sources

COMMAND = "lamjax distill"


@with_groups(options=reading.options)
def distill(
    teacher: Annotated[Path | None, typer.Argument(help=f"The model that labels: {checkpoints.KINDS}.")] = None,
    student: Annotated[
        Path | None, typer.Option(help="YAML: model, loss, schedule, steps, ... as for `lamjax train`.")
    ] = None,
    start: Annotated[list[Path] | None, typer.Option(help="Structures where exploration begins; repeatable.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with any key of --template; options go first.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a key: --set explore.steps=500.")] = None,
    head: Annotated[str | None, typer.Option(help="Head of a teacher that has several.")] = None,
    labeller: Annotated[str | None, typer.Option(help=f"Instead of TEACHER. {HELP}")] = None,
    option: Annotated[list[str] | None, typer.Option(help=OPTION_HELP)] = None,
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", "--out", help="Folder of the rounds and the student; default: distilled."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the rounds in the output folder.")] = False,
    template: Annotated[bool, typer.Option("--template", help="Print a config file with all keys and stop.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the config's JSON schema and stop.")] = False,
    *,
    options: ReadOptions,
) -> None:
    """Distil a model into a smaller one: rounds of explore, select, label and train.

    A committee of students, trained together, explores by simulations, perturbations and relaxations. Frames on which
    its members disagree (largest force deviation between two trust levels) are labelled by the teacher and learned.
    It ends when deviation, and errors on fresh frames, are below the thresholds of `enough`, or after `rounds`.

    Instead of a teacher the config, or --labeller, can name a calculator (quantum chemistry, or another code's model;
    package.module:factory is imported because you name it), and the config files that come back later. With
    `student.base` the same loop is active learning: labels in, a better model out.

    Every stage is on disk (round-000/explored.extxyz, selected, labelled, student-0.lamjax, round.json, ...) when the
    next one begins; a killed run goes on with --resume. At the end: student.lamjax, student-tabulated.lamjax (the same,
    faster), rounds.png and report.html.
    """
    if template or schema:
        print(TEMPLATE if template else config_schema(DistillConfig, COMMAND), end="")
        return
    if teacher and labeller or option and not labeller:
        raise ValueError("Give either TEACHER or --labeller, and --option to a calculator that --labeller names.")
    named = None if labeller is None else dataclasses.asdict(labeller_config(labeller, option or (), head))
    changes = [*(set_ or ()), *reading.changes(options)]
    settings = _settings(teacher, student, start, config, changes, head, out, named)
    check_sources(settings, distillation.WRITTEN, [path for path in (config, student) if path], resume)
    # x64 for positions and sums of energies; networks run in the configs' precisions
    with resumable(settings.output), jax.enable_x64(True):
        _run(settings, resume)


def _run(settings: DistillConfig, resume: bool) -> None:
    console.print(banner(settings.student.precision))
    with warnings_as_text():
        run, changed = distillation.prepare(settings, resume)
    if changed:
        console.print(f"Changed for the rounds to come: {'; '.join(changed)}", soft_wrap=True)
    rounds: list[dict[str, Any]] = []
    try:
        with _bar() as show:
            for event in distillation.events(run):
                match event:
                    case distillation.Stage():
                        show(event)
                    case distillation.Round(facts):
                        rounds.append(facts)
                        _say(facts, settings)
    except distillation.Waiting as waiting:
        console.print(f"[yellow]Waiting:[/] {escape(str(waiting))}", soft_wrap=True)
        return
    distillation.finish(run)
    picture = distillation.write_plot(run, rounds)
    console.print(table(f"{len(rounds)} rounds", COLUMNS, [cells(facts) for facts in rounds]))
    _conclude(settings, rounds, picture)


def _settings(
    teacher: Any, student: Any, start: Any, config: Any, changes: Any, head: Any, out: Any, labeller: Any = None
) -> DistillConfig:
    """The config of a file, with what the options say in its place."""
    content = read(config, COMMAND) if config else {}
    if labeller:
        content["labeller"] = labeller
    if teacher:
        old = content.get("labeller", {})
        kept = {key: value for key, value in old.items() if old.get("type") == "potential"}
        content["labeller"] = {**kept, "type": "potential", "model": str(teacher)}
    if head and not labeller:
        content.setdefault("labeller", {"type": "potential"})["head"] = head
    if student:
        content["student"] = _student(student)
    content |= {"start": [str(path) for path in start]} if start else {}
    content |= {"output": str(out)} if out else {}
    for change in changes:
        apply(content, change)
    if missing := [key for key in ("labeller", "student", "start") if key not in content]:
        raise ValueError(
            f"Not given: {', '.join(missing)}. lamjax distill teacher.lamjax --student student.yaml --start "
            f"structures.extxyz, or all of it in a file: --config; `{COMMAND} --template` prints one."
        )
    return validate(content, str(config or "options"), DistillConfig)


def _student(path: Path) -> dict[str, Any]:
    """The keys of a config of `lamjax train` that concern a student; prints which others are ignored."""
    content = read(path)
    known = {field.name for field in dataclasses.fields(StudentConfig)}
    if unused := sorted(content.keys() - known):
        console.print(f"{path}: of no use for a student: {', '.join(unused)}", soft_wrap=True)
    return {key: value for key, value in content.items() if key in known}


def _say(facts: dict[str, Any], settings: DistillConfig) -> None:
    """Print one line for a finished round, and its warnings."""
    number, most = facts["round"], facts.get("deviation", {}).get("95 %", "")
    text = (
        f"round {number}: {facts['explored']} frames explored, {facts['within']} within trust, {facts['above']} above"
    )
    if "deviation" in facts:
        text += f"; 95 % deviate less than {'infinity' if most is None else f'{most:.3g} eV/Å'}"
    if facts["force"] is not None:
        text += f"; fresh: E {1000 * facts['energy']:.3g} meV/atom, F {1000 * facts['force']:.3g} meV/Å"
    console.print(text + ("; enough" if facts["enough"] else ""), soft_wrap=True)
    for why, n, what in (("why", "ended_early", "ended early"), ("why_not", "not_labelled", "frames without a label")):
        if facts[n]:
            console.print(f"  {facts[n]} {what}: {escape(facts[why][0])}", soft_wrap=True, style="dim")
    if "deviation" in facts and not facts["within"]:
        where = "above the upper trust level: explore more gently" if facts["above"] else "below the lower trust level"
        console.print(f"  [yellow]Nothing to learn from: no frame is within trust, {where}.[/]", soft_wrap=True)


def _conclude(settings: DistillConfig, rounds: list[dict], picture: Path | None) -> None:
    """Print the final table of models, and the paths of all output files."""
    models = json.loads((Path(settings.output) / RESULT).read_text())
    title = "Student and labels: RMSE on the fresh frames of all rounds"
    console.print(table(title, MODELS, [model_cells(one) for one in models]))
    if not rounds[-1]["enough"]:
        console.print(
            f"[yellow]Not enough after {settings.rounds} rounds.[/] Go on: --resume --set rounds={settings.rounds + 4}"
        )
    console.print(f"written to {settings.output}" + (f", {picture.name}" if picture else ""))
    at_end(Path(settings.output))


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[distillation.Stage], None]]:
    """A function that shows a stage: a bar in a terminal, else a line at its beginning and its end."""
    if not console.is_terminal:
        yield _line
        return
    with bars("{task.fields[detail]}") as bar:
        tasks: dict[tuple[int, str], Any] = {}

        def show(stage: distillation.Stage) -> None:
            key = stage.round, stage.name
            if key not in tasks:
                for old in tasks.values():
                    bar.remove_task(old)
                tasks.clear()
                tasks[key] = bar.add_task(f"round {stage.round}: {stage.name}", total=stage.total, detail="")
            bar.update(tasks[key], completed=stage.done, total=stage.total, detail=stage.detail[:60])

        yield show


def _line(stage: distillation.Stage) -> None:
    if stage.name == "train" or stage.done == stage.total:
        detail = f"  {stage.detail}" if stage.detail and stage.name == "train" else ""
        console.print(f"round {stage.round}: {stage.name} {stage.done}/{stage.total}{detail}", soft_wrap=True)
