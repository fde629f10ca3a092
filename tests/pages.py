"""What a reader sees of a page of HTML: its text, headings, pictures, structures, and whether anything is fetched."""

import json
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "br", "img", "path", "use", "rect", "line", "circle"}


class Page(HTMLParser):
    """A page, read; every tag must be closed, and nothing may come from elsewhere."""

    def __init__(self, content: str):
        super().__init__()
        self.open, self.text, self.headings, self.images, self.figures = [], "", [], [], []
        self.rows, self.structures, self.tags = [], None, set()
        self.feed(content)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        result = dict(attributes)
        self.tags.add(tag)
        for name in ("src", "href", "xlink:href"):
            assert result.get(name, "#").startswith(("data:", "#")), result
        assert not any(name.startswith("on") for name in result), result
        self.images += [result["src"]] if tag == "img" else []
        self.figures += [result.get("aria-label")] if tag in ("svg", "canvas") else []
        self.rows += [[]] if tag == "tr" else []
        if tag not in VOID:
            self.open.append((tag, result))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self.open and self.open[-1][0] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data):
        tag, attributes = self.open[-1] if self.open else ("", {})
        if tag == "script" and attributes.get("type") == "application/json":
            self.structures = json.loads(data)
        if tag in ("script", "style"):
            return
        self.text += data
        self.headings += [data] if tag == "h2" else []
        if tag in ("td", "th"):
            self.rows[-1].append(data)


def read_page(path: Path) -> Page:
    """The page of a file."""
    return Page(path.read_text(encoding="utf-8"))
