"""Fields of data are described by the comments beside them, those of configs by their `Field(description=...)`."""

import ast
import re

import griffe

DESCRIPTION = re.compile(r"description=((?:\s*(?:\"[^\"]*\"|'[^']*'))+)")
COMMENT = re.compile(r"[^#]*?#\s*(.*)")


class Fields(griffe.Extension):
    """The comment behind `name: type  # comment` as the description of the attribute."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_) -> None:
        if attr.docstring is not None or attr.parent is None or not attr.parent.is_class or attr.endlineno is None:
            return
        lines = attr.lines_collection[attr.filepath] if attr.filepath in attr.lines_collection else []
        stated = DESCRIPTION.search("\n".join(lines[(attr.lineno or 1) - 1 : attr.endlineno]))
        if stated:
            text = ast.literal_eval(f"({stated[1]})")
            attr.docstring = griffe.Docstring(text, lineno=attr.lineno, endlineno=attr.endlineno, parent=attr)
            return
        if not lines or not (match := COMMENT.match(lines[attr.endlineno - 1])):
            return
        parts = [match[1]]
        for line in lines[attr.endlineno :]:  # a comment may go on below, indented further than a field
            if not re.match(r"\s{8,}#", line):
                break
            parts.append(line.strip().lstrip("# "))
        attr.docstring = griffe.Docstring(" ".join(parts), lineno=attr.lineno, endlineno=attr.endlineno, parent=attr)
