"""Names and signatures: what a reader meets before the first formula."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "lamjax"
ANNOTATED = 0.95
MANY = 21
LONG = {"finetune", "finetune_properties", "finetune_structures", "md", "properties", "relax"}
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


# a command bears the name of its file; an architecture's factory that of its module; the rest are public names
NAMED_AS_THEIR_MODULE = {"dpa1", "nequip", "relax", "stream"}


def test_no_function_bears_its_modules_name():
    functions = {
        node.name
        for file, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == Path(file).stem and "/cli/" not in file
    }
    assert functions <= NAMED_AS_THEIR_MODULE


def functions(trees: dict[str, ast.Module]) -> Iterator[tuple[str, ast.FunctionDef, list[ast.arg]]]:
    """Place, definition and arguments (without self) of every function."""
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                known = node.args
                several = [one for one in (known.vararg, known.kwarg) if one]
                arguments = [*known.posonlyargs, *known.args, *known.kwonlyargs, *several]
                yield f"{file}:{node.lineno} {node.name}", node, [a for a in arguments if a.arg not in ("self", "cls")]


def unannotated(trees: dict[str, ast.Module]) -> list[str]:
    return [
        place
        for place, node, arguments in functions(trees)
        if node.returns is None or any(argument.annotation is None for argument in arguments)
    ]


def test_signatures_are_annotated():
    trees = {"a.py": ast.parse("class A:\n    def f(self, x: int) -> int: ...\n    def g(self, *x) -> None: ...")}
    assert unannotated(trees) == ["a.py:3 g"]
    lacking = unannotated(TREES)
    share = 1 - len(lacking) / len(list(functions(TREES)))
    assert share >= ANNOTATED, f"{share:.3f} of the functions are annotated; not: {', '.join(lacking)}"


def test_functions_are_short():
    """Longer ones are split; those named here are left."""
    long = {place.split(" ")[1] for place, node, _ in functions(TREES) if node.end_lineno - node.lineno >= 60}
    assert long <= LONG


def test_functions_take_few_arguments():
    """Commands have an argument for each option; everything else at most six, but for those that are counted here."""
    many = [place for place, _, arguments in functions(TREES) if len(arguments) > 6 and "/cli/" not in place]
    assert len(many) <= MANY, many
