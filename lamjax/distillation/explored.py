"""A set of structures made by an exploration, written while it goes on."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase

from lamjax.data import Frame, from_atoms, records
from lamjax.distillation import files
from lamjax.distillation.config import ExploreConfig
from lamjax.distillation.exploration import Engine, Walk, beginnings, parts, plain_start
from lamjax.distillation.substitute import USUAL, substitutes
from lamjax.files import cut, size


class Explored(NamedTuple):
    """A part of an exploration is done and written."""

    done: int
    total: int
    origins: Counter[str]  # frames so far, by how they were made
    failures: list[str]  # of this part: why something ended early
    unusable: int  # frames of this part that were left out: atoms on one place, or a flat cell


def explore_set(
    config: ExploreConfig,
    engine: Engine | None,
    starts: Sequence[Frame],
    out: Path,
    seed: int = 0,
    elements: Sequence[str] = USUAL,
    resume: bool = False,
    name: str = "",
) -> Iterator[Explored]:
    """The starts, their substitutions, and what perturbations, relaxations and simulations make of all of them.

    Every frame's info says its origin, the start and the seed. The same starts, config, engine and seed give the same
    set. Frames are kept in OUT.partial, part by part, until all is done; with `resume` a run that was killed goes on at
    the part that it was in; simulations on a potential may then differ in the last digits, as their arrays may be
    narrower. `name` is the engine's, which must stay. `elements` may be substituted.
    """
    _check(config, engine, starts)
    starts = [plain_start(start) for start in starts]
    every = [*starts, *substitutes(starts, config.substitutions, seed, elements, config.similar)]
    work = [lambda: iter([Walk(beginnings(every))]), *parts(config, engine, every, seed)]
    settings = _settings(config, starts, seed, elements, name)
    facts = _begin(out, settings, resume)
    origins = Counter(facts["origins"])
    with open(files.partial(out), "a") as file:
        for number in range(facts["parts"], len(work)):
            failures, unusable = [], 0
            for walk in work[number]():
                usable = [atoms for atoms in walk.frames if is_usable(atoms)]
                unusable += len(walk.frames) - len(usable)
                failures += [walk.failure] if walk.failure else []
                for atoms in usable:
                    records.append(file, atoms)
                origins.update(atoms.info["origin"] for atoms in usable)
            facts |= {"parts": number + 1, "bytes": size(files.partial(out)), "origins": dict(origins)}
            files.write_facts(files.partial_facts(out), facts)
            yield Explored(number + 1, len(work), origins, failures, unusable)
    files.partial(out).replace(out)
    files.partial_facts(out).unlink()


def is_usable(atoms: ase.Atoms) -> bool:
    """Whether a structure can be labelled: no coinciding atoms, no flat cell."""
    try:
        from_atoms(atoms)
    except ValueError:
        return False
    return True


def _check(config: ExploreConfig, engine: Engine | None, starts: Sequence[Frame]) -> None:
    if not len(starts):
        raise ValueError("There are no structures to explore from.")
    if engine is None and (config.relaxations or config.temperatures):
        raise ValueError("Relaxations and simulations need a potential or a calculator that moves the atoms. Name one.")
    check_pressures(config, starts)


def check_pressures(config: ExploreConfig, starts: Sequence[Frame]) -> None:
    """ValueError for a start that no barostat can act on."""
    if config.pressures and (flat := [start.source for start in starts if not start.system.pbc.all()]):
        raise ValueError(
            f"explore.pressures: {flat[0]} is not periodic in all directions. Leave pressures out, or that start."
        )


def _settings(config: Any, starts: Sequence[Frame], seed: int, elements: Sequence[str], name: str) -> dict[str, Any]:
    """The settings that must not change when an exploration is resumed."""
    digest = hashlib.sha256()
    for start in starts:
        for array in start.system[:4]:
            digest.update(array.tobytes())
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    return {"explore": plain, "seed": seed, "elements": list(elements), "with": name, "starts": digest.hexdigest()}


def _begin(out: Path, settings: dict[str, Any], resume: bool) -> dict[str, Any]:
    """The parts that are done; ValueError where the exploration may not begin or be resumed."""
    partial, facts = files.partial(out), files.read_facts(files.partial_facts(out))
    if out.exists():
        raise ValueError(f"{out} exists: it would be lost. Choose another output, or remove it.")
    if facts and not resume:
        raise ValueError(
            f"{partial} holds an exploration that was not finished. Go on with --resume, choose another output, or "
            f"remove {partial} and {files.partial_facts(out)}."
        )
    if changed := [key for key, value in settings.items() if facts and facts["settings"].get(key) != value]:
        raise ValueError(
            f"{partial} was begun with other settings ({', '.join(changed)}). Give those again to go on, or choose "
            "another output."
        )
    facts = facts or {"settings": settings, "parts": 0, "bytes": 0, "origins": {}}
    if not facts["parts"]:
        partial.unlink(missing_ok=True)
    else:
        cut(partial, facts["bytes"])
    files.write_facts(files.partial_facts(out), facts)
    return facts
