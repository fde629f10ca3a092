"""Tables that fit; progress without a terminal: plain lines that say how long it still takes."""

import importlib
import io

import pytest
from rich.cells import cell_len
from rich.console import Console

module = importlib.import_module("lamjax.reports.console")  # the package has an object of this name


def lines_of(monkeypatch, clock, run) -> list[str]:
    text = io.StringIO()
    monkeypatch.setattr(module, "console", Console(file=text, width=80, highlight=False))
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    run()
    return text.getvalue().splitlines()


def test_plain_lines_tell_the_time_left(monkeypatch):
    clock = [0.0]

    def run():
        for _ in module.progress(range(4), "relaxing [x]", 4):
            clock[0] += 60.0

    assert lines_of(monkeypatch, clock, run) == [
        "relaxing [x]: 4 to do",
        "relaxing [x]: 1/4, 3 min left",
        "relaxing [x]: 2/4, 2 min left",
        "relaxing [x]: 3/4, 60 s left",
        "relaxing [x]: 4/4",
    ]


def test_a_run_that_goes_on_counts_its_own_steps_alone(monkeypatch):
    clock = [0.0]

    def run():
        with module.bar("training", total=100, done=50, interval=1.0) as tell:
            clock[0] = 10.0
            tell(60, "loss 1")

    assert lines_of(monkeypatch, clock, run) == ["training: 60/100, 40 s left  loss 1"]


ROUNDS = [
    "round", "explored", "ended early", "below trust", "within", "above", "deviation 50 %", "deviation 95 %",
    "deviation 100 % (eV/Å)", "learn", "fresh", "no label", "E (meV/atom)", "F (meV/Å)", "time (s)",
]  # fmt: skip
TABLES = {
    "many columns": (ROUNDS, [[f"{10 ** (k % 5)}r{n}" for k in range(15)] for n in range(3)]),
    "long names": (["", "unit", "RMSE"], [["a/b/" * 30 + "x.extxyz", "meV/atom", 1.23456], ["y", "", "long " * 30]]),
    "one column": (["name"], [["x" * 200], ["y"]]),
    "brackets": (["[bold]", "x"], [["[/red]", "[]"]]),
    "wide letters": (["元素", "エネルギー (eV)"], [["水素", 1.0]]),
    "no rows": (ROUNDS, []),
}


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("name", TABLES)
def test_tables_are_as_wide_as_the_terminal_and_whole(name, width):
    columns, rows = TABLES[name]
    text = io.StringIO()
    Console(file=text, width=width, highlight=False).print(module.table("Title", columns, rows))
    lines = text.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= width and lines[0].startswith("Title")
    shown = "".join("".join(c for c in line if c not in " │┃━┏┳┓┡╇┩└┴┘─") for line in lines)
    texts = [*columns, *(f"{x:.4g}" if isinstance(x, float) else x for row in rows for x in row)]
    if len(columns) == 1 or width == 200:  # what is folded is there, letter by letter
        assert all(text.replace(" ", "")[:15] in shown for text in texts)
    if width >= 80:  # no word is broken, and every table begins with the first column
        words = [word for text in texts for word in text.split() if len(word) < 24]
        assert all(any(word in line for line in lines) for word in words)
        heads = [line for line in lines if line.startswith("┏")]
        assert len(heads) == (2 if columns is ROUNDS and width == 80 else 1)
        assert sum(columns[0] in line for line in lines) >= len(heads)
