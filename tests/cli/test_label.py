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
