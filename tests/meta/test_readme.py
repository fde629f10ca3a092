"""The examples of the README run as they stand, one after the other, in a folder with the files that they name."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

import lamjax

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


# the files and models of the examples are small: what does not converge is named
@pytest.mark.filterwarnings("ignore:Left out|.*not relaxed|.*did not converge")
def test_examples_of_the_readme_run(folder):
    assert len(BLOCKS) >= 3
    names: dict = {}
    for block in BLOCKS:
        exec(block.replace("Unrolled(60)", "Unrolled(2)"), names)  # the same program, sooner
    assert np.isfinite(float(names["relaxed"][0].energy)) and names["atoms"].calc.results["stress"].shape == (6,)
    assert names["metrics"]["dq_mean"] > 0
    lamjax.load(folder / "tuned.lamjax")


def test_every_command_of_the_readme_exists():
    from_readme = set(re.findall(r"^\| `lamjax (\w+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE))
    source = (ROOT / "lamjax" / "cli" / "__init__.py").read_text()
    assert from_readme and all(re.search(rf"\b{name}\b", source) for name in from_readme)


def test_files_that_the_readme_links_to_are_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_is_one_screen_after_another_and_the_version_is_said_once():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()
