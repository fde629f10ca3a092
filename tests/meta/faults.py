"""Single faults in Python code, made on the syntax tree, and a choice of them: see mutants.py."""

import ast
import copy
import difflib
import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple


class Fault(NamedTuple):
    """One changed place: the child `field[index]` of `parent` becomes `replacement`."""

    kind: str
    line: int
    parent: ast.AST
    field: str
    index: int | None
    replacement: ast.AST


COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
COMPARISONS |= {ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
OPERATIONS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
OPERATIONS |= {ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
PAIRS = [
    ("min", "max"),
    ("minimum", "maximum"),
    ("any", "all"),
    ("argmin", "argmax"),
    ("zeros", "ones"),
    ("sum", "mean"),
]
PAIRS += [("floor", "ceil"), ("sin", "cos"), ("zeros_like", "ones_like"), ("segment_min", "segment_max")]
OTHER_NAME = {**dict(PAIRS), **{b: a for a, b in PAIRS}}


def changed(node: ast.AST, **fields) -> ast.AST:
    """A copy of the node with other fields."""
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def constants(node) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.Constant(value=bool(value)):
            yield "flag", changed(node, value=not value)
        case ast.Constant(value=int(value)):
            yield "constant", changed(node, value=value + 1)
            if value == 1:
                yield "constant", changed(node, value=0)
        case ast.Constant(value=float(value)):
            yield "constant", changed(node, value=value * 2 if value else 1.0)
        case ast.UnaryOp(op=ast.USub()):
            yield "sign", node.operand
        case ast.UnaryOp(op=ast.Not()):
            yield "condition", node.operand
        case ast.UnaryOp(op=ast.Invert()):
            yield "condition", node.operand


def operators(node) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARISONS:
            yield "comparison", changed(node, ops=[COMPARISONS[type(op)]()])
            if isinstance(op, ast.Lt | ast.Gt | ast.LtE | ast.GtE):
                yield "comparison", changed(node, left=node.comparators[0], comparators=[node.left])
        case ast.BinOp(op=ast.MatMult()):
            yield "operator", changed(node, left=node.right, right=node.left)
        case ast.BinOp(op=op) if type(op) in OPERATIONS:
            yield "operator", changed(node, op=OPERATIONS[type(op)]())
        case ast.AugAssign(op=op) if type(op) in OPERATIONS:
            yield "operator", changed(node, op=OPERATIONS[type(op)]())
        case ast.BoolOp():
            yield "and/or", changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
            yield "and/or", changed(node, values=node.values[:-1]) if len(node.values) > 2 else node.values[0]


def calls(node) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.Call(func=ast.Attribute(attr="where"), args=[condition, a, b]):
            yield "where", changed(node, args=[condition, b, a])
        case ast.Call(func=ast.Attribute(attr="swapaxes" | "transpose")):
            yield "transpose", node.args[0]
        case ast.Call(args=[a, b, *rest]) if not any(isinstance(x, ast.Starred) for x in (a, b)):
            yield "arguments", changed(node, args=[b, a, *rest])
        case ast.Attribute(attr="T"):
            yield "transpose", node.value
        case ast.Attribute(attr=name) if name in OTHER_NAME:
            yield "reduction", changed(node, attr=OTHER_NAME[name])
        case ast.Name(id="min" | "max" | "any" | "all" as name):
            yield "reduction", changed(node, id=OTHER_NAME[name])
    if isinstance(node, ast.Call):
        for i, keyword in enumerate(node.keywords):
            if keyword.arg not in DEFENSIVE:
                yield "keyword left out", changed(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])


def statements(node) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.If() | ast.IfExp() | ast.While():
            yield "condition", changed(node, test=ast.UnaryOp(ast.Not(), node.test))
        case ast.Expr(value=ast.Call() | ast.Yield()) | ast.AugAssign() | ast.Raise() | ast.Continue():
            yield "statement left out", ast.copy_location(ast.Pass(), node)
        case ast.Assign(targets=[ast.Name(id=name)], value=value):  # a value that is computed anew from itself
            if any(isinstance(x, ast.Name) and x.id == name for x in ast.walk(value)):
                yield "statement left out", ast.copy_location(ast.Pass(), node)


OPERATORS: tuple[Callable[[ast.AST], Iterator[tuple[str, ast.AST]]], ...] = (constants, operators, calls, statements)
DEFENSIVE = {None, "strict", "indices_are_sorted"}  # keywords that change nothing for right input
NO_CODE = {"annotation", "returns", "decorator_list", "exc", "names", "format_spec"}  # types and messages


def faults(parent: ast.AST, line: int = 0) -> Iterator[Fault]:
    """All faults below a node of the tree, in the order of the source."""
    for field, value in ast.iter_fields(parent):
        if field in NO_CODE or isinstance(parent, ast.JoinedStr) or getattr(parent, "arg", "") in DEFENSIVE - {None}:
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST):
                here = getattr(child, "lineno", line)
                for operator in OPERATORS:
                    for kind, new in operator(child):
                        yield Fault(kind, here, parent, field, index, new)
                if not _is_message(child):
                    yield from faults(child, here)


def _is_message(node: ast.AST) -> bool:
    """Whether the node is a warning, whose arguments are words."""
    return isinstance(node, ast.Call) and ast.unparse(node.func) in {"warnings.warn", "print"}


def apply(tree: ast.Module, fault: Fault) -> str:
    """The source of the tree with the fault; the tree itself stays as it was."""
    children = getattr(fault.parent, fault.field)
    try:
        if fault.index is None:
            setattr(fault.parent, fault.field, fault.replacement)
        else:
            setattr(
                fault.parent, fault.field, [*children[: fault.index], fault.replacement, *children[fault.index + 1 :]]
            )
        return ast.unparse(ast.fix_missing_locations(tree))
    finally:
        setattr(fault.parent, fault.field, children)


def choose(files: list[Path], n: int, root: Path, seed: str) -> list[dict]:
    """The faults of some files: kinds in turn, at most one a line, each with its file, difference and faulty source."""
    rng, by_kind = random.Random(seed), {}
    for path in files:
        tree = ast.parse(path.read_text())
        for fault in faults(tree):
            by_kind.setdefault(fault.kind, []).append((path, tree, fault))
    chosen: dict[tuple[Path, int], dict] = {}
    while len(chosen) < n and any(by_kind.values()):
        kinds = sorted(kind for kind in by_kind if by_kind[kind])
        for kind in rng.sample(kinds, len(kinds)):
            path, tree, fault = by_kind[kind].pop(rng.randrange(len(by_kind[kind])))
            before, after = ast.unparse(tree), apply(tree, fault)
            if before != after and (path, fault.line) not in chosen and len(chosen) < n:
                chosen[path, fault.line] = _described(path.relative_to(root), tree, fault, before, after)
    return list(chosen.values())


def _described(path: Path, tree: ast.Module, fault: Fault, before: str, after: str) -> dict:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    difference = [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]
    name = hashlib.sha1("\n".join([str(path), str(fault.line), *difference]).encode()).hexdigest()[:10]
    return {
        "name": name,
        "file": str(path),
        "line": fault.line,
        "function": _function_around(tree, fault.line),
        "kind": fault.kind,
        "difference": difference,
        "source": after,
    }


def _function_around(tree: ast.Module, line: int) -> int | None:
    """First line (of the decorators, if any) of the innermost function that holds the line; None outside of all."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.lineno <= line <= n.end_lineno]
    if not functions:
        return None
    inner = max(functions, key=lambda n: n.lineno)
    return min([inner.lineno, *(d.lineno for d in inner.decorator_list)])
