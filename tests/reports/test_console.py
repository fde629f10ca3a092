"""Progress without a terminal: plain lines that say how long it still takes."""

import importlib
import io

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
