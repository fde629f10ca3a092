"""SHELX files (.res, also AIRSS's): whether their sites are wholly occupied, which ASE's reader does not look at."""

from collections.abc import Iterator

FULL = 1e-3  # an occupancy nearer to 1 than this is 1
FREE = 10.0  # SHELX adds it to an occupancy that is not refined


def check(lines: Iterator[str]) -> None:
    """ValueError that lists the atoms whose site occupation factor is not 1: "Si 1 0.0 0.0 0.0 0.5"."""
    partial, in_atoms = [], False
    for number, line in enumerate(lines, 1):
        words = line.split()
        if words and words[0].upper() == "SFAC":
            in_atoms = True
        elif words and words[0].upper() in ("END", "HKLF"):
            break
        elif in_atoms and len(words) >= 6 and (factor := _number(words[5])) is not None and words[1].isdigit():
            factor -= FREE if factor > FREE - 1 else 0
            if abs(factor - 1) > FULL:
                partial.append(f"line {number}: {words[0]} ({factor:g})")
    if partial:
        raise ValueError(
            f"{partial[0].partition(': ')[0]}: {len(partial)} sites are partly occupied: "
            f"{', '.join(one.partition(': ')[2] for one in partial[:8])}. Choose an ordered structure."
        )


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
