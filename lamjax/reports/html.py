"""A report as one HTML file that needs no network: tables, plots, pictures, and structures that can be turned."""

import base64
import html
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from lamjax.reports import style

ASSETS = resources.files("lamjax") / "assets" / "report"
TEXT = "#123456"  # stands for the colour of the text, which depends on the reader's light or dark mode
COLORS = {TEXT: "currentColor", style.AFTER: "var(--after)", style.BLUE: "var(--third)"}
DRAWN = {"svg.fonttype": "path", "savefig.format": "svg", "savefig.facecolor": "none", "axes.facecolor": "none"}
DRAWN |= {"figure.facecolor": "none", "legend.facecolor": "none"}
DRAWN |= {f"{part}.color": TEXT for part in ("text", "xtick", "ytick", "grid")}
DRAWN |= {"axes.edgecolor": TEXT, "axes.labelcolor": TEXT, "axes.titlecolor": TEXT}
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
MOST_ROWS = 200


class View(NamedTuple):
    """A structure from one side: plain numbers, in Å."""

    label: str  # below the picture
    symbols: Sequence[str]
    positions: Sequence[Sequence[float]]
    cell: Sequence[Sequence[float]] | None  # lattice vectors; None for a molecule
    periodic: Sequence[bool] = (True, True, True)


class Element(NamedTuple):
    """Colour and radius of an element's atoms."""

    color: tuple[int, int, int]  # red, green, blue, up to 255
    radius: float  # covalent, Å


class PageSection(NamedTuple):
    """A heading and the HTML below it."""

    title: str
    body: str


def page(title: str, lead: str, sections: Iterable[PageSection], end: str) -> str:
    """The whole file; sections without a body are left out. It follows the light or dark mode of the reader."""
    kept = [one for one in sections if one.body]
    body = "\n".join(f"<section><h2>{text(one.title)}</h2>\n{one.body}\n</section>" for one in kept)
    css = (ASSETS / "page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{text(title)}</h1>\n<p class="lead">{text(lead)}</p>\n{body}\n<footer>{text(end)}</footer>\n'
        "</main>\n</body>\n</html>\n"
    )


def text(content: Any) -> str:
    """Plain text, whatever characters are in it."""
    return html.escape(f"{content:.4g}" if isinstance(content, float) else str(content))


def paragraph(content: str, kind: str = "") -> str:
    """A paragraph of plain text; `kind` is note or warn."""
    return f'<p class="{kind}">{text(content)}</p>' if kind else f"<p>{text(content)}</p>"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], where: str = "") -> str:
    """Rows below a header, floats with four digits; of very many the first ones, and `where` all are."""
    if not rows:
        return ""
    head = "".join(f"<th>{text(column)}</th>" for column in columns)
    body = "\n".join("<tr>" + "".join(f"<td>{text(x)}</td>" for x in row) + "</tr>" for row in rows[:MOST_ROWS])
    more = f"The first {MOST_ROWS} of {len(rows)}" + (f"; all are in {where}." if where else ".")
    cut = paragraph(more, "note") if len(rows) > MOST_ROWS else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>{cut}'


def facts(rows: Iterable[tuple[str, Any]]) -> str:
    """Names and values, a line each."""
    body = "\n".join(f"<tr><td>{text(name)}</td><td>{text(value)}</td></tr>" for name, value in rows)
    return f'<div class="wide"><table class="facts"><tbody>\n{body}\n</tbody></table></div>' if body else ""


def details(summary: str, body: str) -> str:
    """A part of the page that opens when the reader asks for it."""
    return f"<details><summary>{text(summary)}</summary>\n{body}\n</details>" if body else ""


def picture(path: Path, says: str, width: int = 640) -> str:
    """A PNG file, in the page; at least so many pixels wide, where the screen is narrower it scrolls."""
    if not path.is_file():
        return ""
    content = base64.b64encode(path.read_bytes()).decode()
    image = f'<img src="data:image/png;base64,{content}" alt="{text(says)}" style="min-width: {width}px">'
    return f'<div class="wide"><figure class="picture">{image}</figure></div>'


def drawn(plot: Callable[..., None], *arguments: Any, says: str, **options: Any) -> str:
    """A plot of `reports.plots`, as lines in the page that take the colours of the reader's mode."""
    import matplotlib

    content = io.StringIO()
    with matplotlib.rc_context(DRAWN):
        plot(content, *arguments, **options)
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for color, name in COLORS.items():
        svg = svg.replace(color, name)
    start, end = svg.split(">", 1)
    return f'<figure>{start} role="img" aria-label="{text(says)}">{end}</figure>'


def plot_grid(figures: Iterable[str]) -> str:
    """Plots side by side where there is room for it."""
    body = "\n".join(figures)
    return f'<div class="plots">\n{body}\n</div>' if body else ""


def structures(pairs: Sequence[tuple[str, Sequence[View]]], elements: dict[str, Element]) -> str:
    """Structures, each a caption and views that turn together, with all that is needed to draw them; once a page."""
    if not pairs:
        return ""
    figures = []
    for caption, views in pairs:
        shown = "".join(
            f'<div class="view"><canvas role="img" tabindex="0" aria-label="{text(view.label)}"></canvas>'
            f"<p>{text(view.label)}</p></div>"
            for view in views
        )
        figures.append(
            f'<figure class="pair"><figcaption>{text(caption)}</figcaption>\n<div class="views">{shown}</div></figure>'
        )
    content = {
        "elements": {symbol: element._asdict() for symbol, element in elements.items()},
        "pairs": [[view._asdict() for view in views] for _, views in pairs],
    }
    plain = json.dumps(content, separators=(",", ":"), default=lambda x: x.tolist()).replace("<", "\\u003c")
    script = (ASSETS / "viewer.js").read_text(encoding="utf-8")
    hint = paragraph("Drag to turn. Pinch, + and - zoom; double click: as at first.", "note")
    noscript = "<noscript><p>To be seen, structures need JavaScript, which is in this file.</p></noscript>"
    end = f'<script type="application/json" id="structures">{plain}</script>\n<script>\n{script}</script>'
    return "\n".join([hint, noscript, *figures, end])
