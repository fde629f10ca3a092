"""The tests themselves: each asserts something, and the faults that are put in to try them are faults."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = sorted(TESTS.rglob("test_*.py"))


def asserts(function: ast.FunctionDef) -> bool:
    """Whether a function holds an assertion, of Python, numpy, chex or pytest."""
    called = [ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)]
    known = ("assert", "pytest.raises", "pytest.warns", "pytest.fail")
    return any(isinstance(node, ast.Assert) for node in ast.walk(function)) or any(
        name.startswith(known) or ".assert" in name for name in called
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_every_test_asserts_something_or_says_what_it_guards_against(path):
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    helpers = {function.name for function in functions if asserts(function)}
    for function in functions:
        if function.name.startswith("test_") and function.name not in helpers:
            called = {ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
            text = f"{path}:{function.lineno} {function.name} asserts nothing: say in its docstring what it is for"
            assert called & helpers or ast.get_docstring(function), text


def test_the_tests_that_take_longest_are_there():
    """A name in thorough.txt that no test has would silently bring its test back into the short run."""
    for name in (TESTS / "thorough.txt").read_text().split():
        path, function = name.split("::")
        functions = ast.walk(ast.parse((TESTS.parent / path).read_text()))
        assert function in {node.name for node in functions if isinstance(node, ast.FunctionDef)}, name


@pytest.fixture(scope="module")
def faults():
    """The module of the faults, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("faults", Path(__file__).with_name("faults.py"))
    sys.modules["faults"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["faults"])
    yield sys.modules["faults"]
    del sys.modules["faults"]


SOURCE = '''
def area(a: int, b, axis=-1):
    """Words of -1."""
    if a < 3 and not b:
        raise ValueError(f"{a + 1} is too small")
    b.append(2.5)
    both = list(zip(a, b, strict=True))
    return np.where(a >= 1, np.sum(a * b.T, axis=axis), min(a, b))
'''


def test_faults_change_code_and_neither_words_nor_types(faults):
    tree = ast.parse(SOURCE)
    before = ast.unparse(tree)
    made = [(fault.kind, faults.apply(tree, fault)) for fault in faults.faults(tree)]
    assert ast.unparse(tree) == before
    assert len({text for _, text in made}) == len(made) and before not in {text for _, text in made}
    assert {kind for kind, _ in made} == {
        *("comparison", "and/or", "constant", "sign", "condition", "where", "operator", "reduction", "transpose"),
        *("arguments", "keyword left out", "statement left out"),
    }
    for _, text in made:
        compile(text, "area", "exec")
        assert "Words of -1." in text and "a: int" in text and "strict=True" in text
        assert "{a + 1} is too small" in text or "raise" not in text


def test_the_choice_of_faults_depends_on_the_seed_alone(faults, tmp_path):
    file = tmp_path / "area.py"
    file.write_text(SOURCE)
    one, again, other = (faults.choose([file], 4, tmp_path, seed) for seed in ("0", "0", "1"))
    assert one == again != other and len({fault["line"] for fault in one}) == len(one) == 4
    assert all(fault["function"] == 2 and fault["file"] == "area.py" for fault in one)
