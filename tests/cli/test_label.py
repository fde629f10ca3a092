"""What `lamjax label` says while it runs."""

from collections import Counter
from types import SimpleNamespace

from lamjax import distillation
from lamjax.cli import label


def test_the_time_left_is_told_once(monkeypatch, capsys):
    """Where there is no terminal; by the line of progress, which needs no other beside it."""
    monkeypatch.setattr(label, "SECONDS", -1.0)
    end = distillation.Written(4, 0, 0, Counter(), None)
    events = [SimpleNamespace(done=k, reason="it failed" if k == 3 else None) for k in (1, 2, 3, 4)]
    assert label._run(iter([*events, end]), 4) is end
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0].split("  ")[0] for line in lines] == [f"labelling: {k}/4" for k in (1, 2, 3, 4)]
    assert [line.count(" left") for line in lines] == [1, 1, 1, 0]
    assert [line.endswith("  1 without a label") for line in lines] == [False, False, True, True]


def test_the_bar_moves_when_frames_are_done_that_are_labelled_together(monkeypatch, capsys):
    """After the first of 256 that came at once, the time left would be 256 times too long."""
    monkeypatch.setattr(label, "SECONDS", -1.0)
    events = [SimpleNamespace(done=k, reason=None) for k in range(1, 8)]
    label._run(iter([*events, distillation.Written(7, 0, 0, Counter(), None)]), 7, at_once=3)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0].split("  ")[0] for line in lines] == [f"labelling: {k}/7" for k in (3, 6, 7)]
