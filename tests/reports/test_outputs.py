"""What is found out of outputs before any work: they can be written, and are no input by whatever name."""

import os
import re
import sys
from pathlib import Path

import pytest

from lamjax.reports import outputs

ENDINGS = (".npz", ".extxyz", ".extxyz.gz")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with an input, seen from within."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set.extxyz").write_text("of value")
    return tmp_path


def test_an_output_is_never_an_input_however_it_is_named(place):
    (place / "soft.extxyz").symlink_to("set.extxyz")
    os.link("set.extxyz", "hard.extxyz")
    (place / "deep").mkdir()
    (place / "also").symlink_to("deep")
    for name in ("set.extxyz", place / "set.extxyz", "deep/../set.extxyz", "soft.extxyz", "hard.extxyz"):
        for other in ("set.extxyz", "soft.extxyz", "hard.extxyz"):
            with pytest.raises(ValueError, match="one of the inputs.* would be lost. Choose another --out"):
                outputs.claim(["fine.png", name], ["model", other], "--out")
    outputs.claim(["also/new.extxyz"], ["deep/old.extxyz"])
    with pytest.raises(ValueError, match="given as deep/new.extxyz"):  # neither of them is there
        outputs.claim(["also/new.extxyz"], ["deep/new.extxyz"])
    assert sorted(p.name for p in place.iterdir()) == ["also", "deep", "hard.extxyz", "set.extxyz", "soft.extxyz"]


def test_the_svg_beside_a_plot_is_an_output_as_well(place):
    (place / "plot.svg").write_text("drawn by hand")
    with pytest.raises(ValueError, match="plot.svg would be written, but it is one of the inputs"):
        outputs.claim(["plot.png"], ["plot.svg"])
    with pytest.raises(ValueError, match="plot.svg would be written, but it is one of the inputs"):
        outputs.claim_folder(".", ["curve*.png", "plot.png"], ["plot.svg"])


def test_a_folder_is_made_and_what_cannot_be_written_is_found_out(place):
    outputs.claim(["new/deep/out.npz"], ["set.extxyz"])
    assert (place / "new/deep").is_dir() and not list((place / "new/deep").iterdir())
    with pytest.raises(OSError, match="set.extxyz: nothing can be written to this folder.*Choose another --out"):
        outputs.claim(["set.extxyz/out.npz"], (), "--out")
    with pytest.raises(ValueError, match="new is a folder. Name a file"):
        outputs.claim(["new"])
    with pytest.raises(ValueError, match="set.extxyz is a file. Name a folder"):
        outputs.claim_folder("set.extxyz", ["*"])
    if sys.platform != "win32":
        outputs.claim([os.devnull], [os.devnull])


def test_missing_rights_are_found_out(place, monkeypatch):
    """As root may write everywhere, the system's answers are those that others get."""
    monkeypatch.setattr(outputs.os, "access", lambda path, how: Path(path).name != "set.extxyz")
    with pytest.raises(OSError, match="set.extxyz is write-protected"):
        outputs.claim(["set.extxyz"])
    outputs.claim(["new.extxyz"])

    def refused(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(outputs.tempfile, "TemporaryFile", refused)
    for claim in (lambda: outputs.claim(["new.extxyz"]), lambda: outputs.claim_folder("run", ["*"])):
        with pytest.raises(OSError, match=r"nothing can be written to this folder \(Permission denied\)"):
            claim()


def test_a_folder_may_hold_inputs_that_a_run_does_not_write(place):
    names = ("model.lamjax", "states/*", "parity*.png", "round-*")
    for name in ("run/model.lamjax", "run/train.extxyz", "run/states/7/array", "run/deep/model.lamjax"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("x")
    os.link("run/model.lamjax", "base.lamjax")
    (place / "soft").symlink_to("run")
    wrong = ("run/model.lamjax", "soft/model.lamjax", "base.lamjax", "run/states/7/array", "run/round-000/seen.extxyz")
    for folder in ("run", "soft", "run/"):
        for name in wrong:
            with pytest.raises(ValueError, match="one of the inputs"):
                outputs.claim_folder(folder, names, ["set.extxyz", name])
        outputs.claim_folder(folder, names, ["set.extxyz", "run/train.extxyz", "run/deep/model.lamjax", "run"])
    outputs.claim_folder(".", names, ["set.extxyz", "run/model.lamjax"])


def test_what_a_name_says_must_be_what_is_written():
    for name in ("a.npz", "b.extxyz", "c.extxyz.gz", "d.e.npz"):
        outputs.check_ending(name, ENDINGS, "predictions are")
    for name in ("x.cif", "npz", "x", "x.npz.gz", "x.xyz"):
        text = f"{name}: the name must end in .npz, .extxyz or .extxyz.gz: predictions are written in no other"
        with pytest.raises(ValueError, match=re.escape(text)):
            outputs.check_ending(name, ENDINGS, "predictions are")
