"""Write tests/thorough.txt: the tests that take longest, which `pytest` leaves to `pytest -m thorough`.

    LAMJAX_TEST_TIMES=times.txt pytest -m "not slow and not deepmd and not phonopy and not mlip"
    python tests/meta/thorough.py times.txt --seconds 500

`--seconds` is the processor time that all the others may take together. A test is listed with all its parameters.
"""

import argparse
from collections import defaultdict
from pathlib import Path

LIST = Path(__file__).parents[1] / "thorough.txt"


def chosen(times: list[str], seconds: float) -> list[str]:
    """The functions to list, the most expensive runs first, until what is left fits."""
    cost: dict[str, float] = defaultdict(float)
    runs: dict[str, int] = defaultdict(int)
    for line in times:
        spent, name = line.split(" ", 1)
        cost[name.split("[")[0].strip()] += float(spent)
        runs[name.split("[")[0].strip()] += 1
    left, picked = sum(cost.values()), []
    for name in sorted(cost, key=lambda n: -cost[n] / runs[n]):
        if left <= seconds:
            break
        picked.append(name)
        left -= cost[name]
    return sorted(picked)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("times", type=Path)
    parser.add_argument("--seconds", type=float, default=500)
    options = parser.parse_args()
    names = chosen(options.times.read_text().splitlines(), options.seconds)
    LIST.write_text("".join(f"{name}\n" for name in names))
    print(f"{LIST}: {len(names)} tests")
