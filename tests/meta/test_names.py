"""Names and signatures: what a reader meets before the first formula."""

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "lamjax"
TREES = {str(path.relative_to(PACKAGE.parent)): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def repeated_classes(trees: dict[str, ast.Module]) -> dict[str, list[str]]:
    """{name: files} of classes that are defined twice."""
    defined = defaultdict(list)
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                defined[node.name].append(f"{file}:{node.lineno}")
    return {name: places for name, places in defined.items() if len(places) > 1}


def test_no_class_name_is_defined_twice():
    assert repeated_classes({"a": ast.parse("class A: ..."), "b": ast.parse("def f():\n    class A: ...")}) == {
        "A": ["a:1", "b:2"]
    }
    assert not repeated_classes(TREES)
