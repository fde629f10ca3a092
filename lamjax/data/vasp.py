"""VASP's OUTCAR and vasprun.xml without the ionic steps whose electronic loop did not converge."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import ase

CONVERGED = "aborting loop because EDIFF is reached"
_FAILED = ("EDIFF was not reached", "hard stop encountered")
_REMEDY = "Nothing to do, or repeat these steps with a larger NELM or other mixing."


class _Lines:
    """Lines as the file that ASE expects: it iterates, and asks for the name."""

    def __init__(self, lines: Iterator[str], name: str) -> None:
        self.lines, self.name = lines, name

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return next(self.lines) + "\n"


def outcar(lines: Iterator[str], folder: Path, note: Callable[..., Any]) -> Iterator[ase.Atoms]:
    """The converged ionic steps of an OUTCAR; how many others there are is a remark (`note`).

    Constraints are those of a CONTCAR or POSCAR in the `folder`.
    """
    from ase.io.vasp_parsers.vasp_outcar_parsers import outcarchunks

    left, n = 0, 0
    for chunk in outcarchunks(_Lines(lines, str(folder / "OUTCAR")), header_parser=_header_parser(folder)):
        n += 1
        if _is_converged(chunk.lines, chunk.header.get("nelm")):
            yield chunk.build()
        else:
            left += 1
    _report(left, n, note)


def _header_parser(folder: Path) -> Any:
    """ASE's parser of the head of an OUTCAR, which reads NELM, the most electronic steps, too."""
    from ase.io.vasp_parsers import vasp_outcar_parsers as parsers

    class Nelm(parsers.SimpleVaspHeaderParser):
        """ "   NELM   =     60;   NELMIN=  2; NELMDL= -5     # of ELM steps"."""

        LINE_DELIMITER = "NELM   ="

        def parse(self, cursor: Any, lines: Any) -> dict[str, int]:
            limit = re.search(r"NELM\s*=\s*(\d+)", lines[cursor])
            return {"nelm": int(limit[1])} if limit else {}

    return parsers.OutcarHeaderParser([*parsers.default_header_parsers.make_parsers(), Nelm()], workdir=folder)


def _is_converged(lines: list[str], nelm: int | None) -> bool:
    """Whether the electronic loop of an ionic step ended because it was done."""
    if any(CONVERGED in line for line in lines):
        return True
    if any(failed in line for line in lines for failed in _FAILED):
        return False
    counts = [int(iteration[1]) for line in lines if (iteration := re.search(r"Iteration\s+\d+\(\s*(\d+)\)", line))]
    return nelm is None or max(counts, default=1) < nelm


def vasprun(path: str, note: Callable[..., Any]) -> Iterator[ase.Atoms]:
    """The converged ionic steps of a vasprun.xml: those of fewer electronic steps than NELM (no other sign)."""
    from ase.io.vasp import read_vasp_xml

    nelm, counts = _electronic_steps(path)
    left = 0
    for atoms, steps in zip(read_vasp_xml(path, slice(None)), counts or [0], strict=False):
        if nelm is None or steps < nelm:
            yield atoms
        else:
            left += 1
    _report(left, len(counts), note)


def _electronic_steps(path: str) -> tuple[int | None, list[int]]:
    """NELM, and the number of electronic steps of every ionic step."""
    nelm, counts = None, []
    try:
        for _, element in ElementTree.iterparse(path):
            if element.tag == "i" and element.get("name", "").upper() == "NELM":
                nelm = int(element.text)
            elif element.tag == "calculation":
                counts.append(len(element.findall("scstep")))
                element.clear()
    except ElementTree.ParseError:
        pass  # cut short; ASE gives the steps before
    return nelm, counts


def _report(left: int, n: int, note: Callable[..., Any]) -> None:
    if left:
        what = f"the electronic loop of {left} of {n} ionic steps ended at NELM without converging: left out"
        note("warning", what, _REMEDY, left)
