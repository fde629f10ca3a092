"""Config files: what YAML 1.1 makes of numbers, dates and keys is not what their writers meant."""

import pytest
import yaml

from lamjax.config import files

VALUES = {
    "1e-3": 1e-3, "-2E+4": -2e4, "1.e3": 1e3, "1.5e2": 150.0, ".5": 0.5, "12.": 12.0, "-0.1": -0.1,
    ".inf": float("inf"), "10": 10, "-3": -3, "0": 0, "1_000": 1000, "0x10": 16,
    "010": "010", "1:30": "1:30", "2024-05-01": "2024-05-01", "No": "No", "no": "no", "Y": "Y", "On": "On", "=": "=",
    "true": True, "False": False, "null": None, "~": None, "": None, "1.2.3": "1.2.3", "'1e-3'": "1e-3",
}  # fmt: skip


@pytest.mark.parametrize("text", list(VALUES))
def test_values_are_what_they_look_like(tmp_path, text):
    (tmp_path / "a.yaml").write_text(f"key: {text}\n")
    read = files.read(tmp_path / "a.yaml")["key"]
    changed = {}
    files.apply(changed, f"key={text}")
    for value in (read, changed["key"]):
        assert value == VALUES[text] and type(value) is type(VALUES[text])


def test_without_a_point_or_exponent_the_rest_is_as_pyyaml_reads_it():
    text = "a: [1, x, {b: 2.5}]\nc: |\n  two\n  lines\nd: &d {e: 1, f: 2}\ng: {<<: *d, e: 3}\n"
    text += "h: &h {<<: *d, e: 4}\ni: {<<: *h, f: 5}\n"
    assert yaml.load(text, files._Loader) == yaml.safe_load(text)


TWICE = {
    "steps": ("steps: 5\nhead: a\nsteps: 7\n", "line 3"),
    "start_lr": ("schedule:\n  start_lr: 1\n  stop_lr: 2\n  start_lr: 1\n", "line 4"),
    "lr": ("a: {lr: 1, lr: 2}\n", "line 1"),
    "seed": ('{\n\t"seed": 1,\n\t"seed": 1\n}\n', "line 3"),
}


@pytest.mark.parametrize("key", list(TWICE))
def test_a_key_that_is_there_twice_is_refused(tmp_path, key):
    text, line = TWICE[key]
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)a\.yaml: .*the key '{key}' is there twice.*{line}"):
        files.read(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match=f"--set .*the key '{key}' is there twice"):
        files.apply({}, "group={" + f"{key}: 1, {key}: 2" + "}")


def test_tabs_are_spaces_in_json_alone(tmp_path):
    (tmp_path / "a.json").write_text('{\n\t"a": {\n\t\t"b": [1, "x y"]\n\t}\n}\n')
    assert files.read(tmp_path / "a.json") == {"a": {"b": [1, "x y"]}}
    (tmp_path / "a.yaml").write_text("a:\n\tb: 1\n")
    with pytest.raises(ValueError, match="(?s)a.yaml: .*line 2.*Indent with spaces, not with tabs"):
        files.read(tmp_path / "a.yaml")
