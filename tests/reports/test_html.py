"""A report is one file: well-formed, without anything from elsewhere, and whatever stands in names stays text."""

import numpy as np
from pages import Page

from lamjax.reports import html, plots
from lamjax.reports.html import Element, PageSection, View

WICKED = '<script>alert("x")</script> & </style>'


def test_a_page_holds_what_it_is_given_and_fetches_nothing(tmp_path):
    plots.parity(tmp_path / "parity.png", {"energy (eV)": ([0.0, 1.0], [0.1, 1.1])}, "")
    picture = html.picture(tmp_path / "parity.png", "parity")
    parts = [
        PageSection("Numbers", html.facts([("length", 1.23456789), (WICKED, WICKED)])),
        PageSection("Table", html.table(["a", "b"], [(1, 2.5), (WICKED, float("nan"))])),
        PageSection("Empty", ""),
        PageSection("Picture", picture + html.picture(tmp_path / "none.png", "none")),
        PageSection("More", html.details("all", html.paragraph("said"))),
    ]
    page = Page(html.page(WICKED, "lead", parts, "end"))
    assert page.headings == ["Numbers", "Table", "Picture", "More"]
    assert "length" in page.text and "1.235" in page.text and page.text.count(WICKED) == 5
    assert len(page.images) == 1 and page.images[0].startswith("data:image/png;base64,")
    assert "script" not in page.tags and {"details", "footer", "style"} <= page.tags


def test_a_long_table_is_cut_and_says_so():
    rows = [(k, k**2) for k in range(html.MOST_ROWS + 1)]
    page = Page(html.page("t", "", [PageSection("Table", html.table(["k", "k²"], rows, "all.csv"))], ""))
    assert len(page.rows) == html.MOST_ROWS + 1 and "200 of 201; all are in all.csv" in page.text
    assert html.table(["a"], []) == ""


def test_a_plot_takes_the_colours_of_the_reader():
    figure = html.drawn(plots.learning_curve, {"loss": {"training": ([1, 2], [1.0, 0.5])}}, "", says='the "loss"')
    assert (
        "currentColor" in figure and html.TEXT not in figure and "http" not in figure.replace("http://www.w3.org", "")
    )
    page = Page(html.page("t", "", [PageSection("Curves", html.plot_grid([figure, figure]))], ""))
    assert page.figures == ['the "loss"'] * 2


def test_structures_are_in_the_page_as_numbers():
    one = View("start", ["Si", "Si"], [[0, 0, 0], [1, 1, 1]], np.eye(3) * 5)
    other = one._replace(label="relaxed", positions=np.array([[0, 0, 0], [1.1, 1, 1]]))
    body = html.structures([(WICKED, [one, other])], {"Si": Element((240, 200, 160), 1.11)})
    page = Page(html.page("t", "", [PageSection("Structures", body)], ""))
    assert page.figures == ["start", "relaxed"] and WICKED in page.text
    ((first, second),) = page.structures["pairs"]
    assert second["positions"][1] == [1.1, 1, 1] and first["cell"][2] == [0, 0, 5]
    assert page.structures["elements"] == {"Si": {"color": [240, 200, 160], "radius": 1.11}}
    assert html.structures([], {}) == ""
