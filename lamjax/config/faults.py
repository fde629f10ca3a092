"""Messages for wrong values in a config, a line for each key."""

import difflib
import re
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lamjax.arguments import describe


def lines(error: ValidationError, kind: Any) -> list[str]:
    """A line for each fault: the key, what was got, and what is supported."""
    return [fault(one, kind) for one in meant(error.errors())]


def meant(errors: Any) -> list[dict]:
    """The errors less those of alternatives (classes) that the key `type` says are not meant."""
    wrong = {
        error["loc"][:-1]
        for error in errors
        if error["type"] == "literal_error" and error["loc"][-1:] == ("type",) and _is_class(error["loc"][:-1])
    }

    def is_meant(loc: tuple) -> bool:
        inside = [branch for branch in wrong if loc[: len(branch)] == branch]
        if not inside:
            return True
        branch = min(inside, key=len)
        siblings = {e["loc"][: len(branch)] for e in errors if e["loc"][: len(branch) - 1] == branch[:-1]}
        return siblings <= wrong and loc == (*branch, "type")  # the type fits none of them: no other fault is reported

    kept, types = [], {}
    for error in [error for error in errors if is_meant(error["loc"])]:
        if error["loc"][:-1] in wrong:  # the type fits no alternative: they are one fault
            first = types.setdefault(error["loc"][:-2], error)
            error["loc"] = (*error["loc"][:-2], "type")
            if first is not error:
                first["ctx"] = {"expected": f"{first['ctx']['expected']}, {error['ctx']['expected']}"}
                continue
        kept.append(error)
    return kept


def _is_class(loc: tuple) -> bool:
    """Whether a place is one of several alternatives, which pydantic calls by the names of their classes."""
    return bool(loc) and str(loc[-1])[:1].isupper()


def fault(error: dict, kind: type) -> str:
    """One line of a validation error; for an unknown key the known one that is meant, or all there are."""
    place = ".".join(map(str, error["loc"])) or "config"
    context, value = error.get("ctx", {}), error.get("input")
    if error["type"] in _BOUNDS:
        return f"{place} must be {_BOUNDS[error['type']]} {next(iter(context.values())):g}, got {value}."
    match error["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            known = _keys(error["loc"][:-1], kind)
            close = _near(error["loc"][-1], known)
            hint = close or (f"Known keys: {', '.join(known)}." if known else "")
            return f"{place}: unknown key. {hint}".rstrip()
        case "union_tag_invalid":
            return f"{place}.type: {_unsupported(context['tag'], context['expected_tags'])}"
        case "literal_error":
            return f"{place}: {_unsupported(value, context['expected'])}"
        case "union_tag_not_found" | "dataclass_type" | "dict_type":
            if isinstance(value, dict):
                return f"{place}: the key `type` is missing."
            return f"{place}: expected keys and values, got {describe(value)}."
        case "objective":
            got = repr(value.get("type")) if isinstance(value, dict) else describe(value)
            return f"{place}: {error['msg']}, got {got}."
        case "too_long" | "too_short":
            limit = context.get("max_length", context.get("min_length"))
            return f"{place}: expected {limit} values, got {context['actual_length']}."
        case "missing":
            return f"{place}: is missing."
        case "value_error":
            return f"{place}: {context['error']}" if error["loc"] else str(context["error"])
    return f"{place}: {_EXPECTED.get(error['type'], error['msg'])}, got {describe(value)}."


_BOUNDS = {
    "greater_than_equal": "at least",
    "greater_than": "above",
    "less_than_equal": "at most",
    "less_than": "below",
}
_EXPECTED = {
    "tuple_type": "expected a list",
    "string_type": "expected a text",
    "string_too_short": "expected a text that is not empty",
    "callable_type": "expected a function",
    "finite_number": "expected a finite number",
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
}


def _unsupported(value: Any, expected: str) -> str:
    """The supported values; `expected` is pydantic's list of them."""
    known = re.findall(r"'([^']*)'", expected) or [expected]
    message = f"{value!r} is not supported; supported: {', '.join(known)}."
    return f"{message} {_near(value, known)}".rstrip()


def _near(value: Any, known: list[str]) -> str:
    """The known name that is meant, as a question; empty if none is like it."""
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(value).lower(), lower, n=1)
    return f"Did you mean {lower[close[0]]}?" if close else ""


def _keys(path: tuple, kind: type) -> list[str]:
    """The keys that a config knows below a path, looked up in its schema; one of several alternatives goes by name."""
    root = TypeAdapter(kind).json_schema()
    node = root
    for part in path:
        options = _options(node, root)
        within = [o["properties"][part] for o in options if part in o.get("properties", ())]
        named = [o for o in options if part in (o.get("title"), o.get("properties", {}).get("type", {}).get("const"))]
        others = [o["additionalProperties"] for o in options if isinstance(o.get("additionalProperties"), dict)]
        node = [*within, *named, *others, options[0]][0]
    return sorted({key for option in _options(node, root) for key in option.get("properties", ())})


def _options(node: dict, root: dict) -> list[dict]:
    """A node of a schema and whatever it refers to or chooses among."""
    nodes = [node]
    for other in (*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("prefixItems", ())):
        nodes += _options(other, root)
    if "$ref" in node:
        nodes += _options(root["$defs"][node["$ref"].rpartition("/")[2]], root)
    return nodes
