"""One look for every plot: PNG and SVG, few panels, names beside lines instead of legends over them."""

import io

import numpy as np
import pytest

from lamjax.reports import plots, style


def test_a_figure_is_a_png_and_an_svg_with_its_caption(tmp_path):
    with style.figure(tmp_path / "a.png", (3, 3), (1, 2), "Title", "Ten structures, two seeds.") as (left, right):
        left.plot([0, 1], [0, 1])
        right.plot([0, 1], [1, 0])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "a.svg").read_text()
    assert "Title" in drawn and "Ten structures, two seeds." in drawn
    assert ">Title</text>" in drawn and ">Ten structures, two seeds.</text>" in drawn  # text stays text, no outlines


def test_equal_plots_are_equal_files(tmp_path):
    for name in "ab":
        plots.parity(tmp_path / f"{name}.png", {"energy (eV)": ([0.0, 1.0], [0.1, 1.1])}, "model")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_stream_takes_svg():
    content = io.StringIO()
    plots.parity(content, {"energy (eV)": ([0.0, 1.0], [0.1, 1.1])}, "model")
    assert "<svg" in content.getvalue()


def test_more_than_four_panels_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no more than 4"), style.figure(tmp_path / "a.png", (3, 3), (1, 5)):
        pass


@pytest.mark.parametrize("ends", [[1, 1.01, 1.02, 5], [1, 1, 1, 1], [4, 3, 2, 1], [1, 1.2, 1.1, 1.3]])
def test_names_at_the_ends_of_lines_do_not_overlap_and_keep_their_order(tmp_path, ends):
    with style.figure(tmp_path / "a.png", (4, 4)) as (ax,):
        for k, end in enumerate(ends):
            ax.plot([0, 1], [0, end], label=f"line {k}", color=style.LINES[k])
        style.name_lines(ax)
        ax.figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in ax.texts]
        assert [text.get_color() for text in ax.texts] == list(style.LINES[: len(ends)])
    order = np.argsort(ends, kind="stable")
    for low, high in zip(order[:-1], order[1:], strict=True):
        assert boxes[low].y1 < boxes[high].y1 and boxes[low].y0 + 8 < boxes[high].y0


@pytest.mark.parametrize(
    "values",
    [
        [303.06804071393645, 303.0680407139365],
        [1e20, 1e20 * (1 + 1e-15)],
        [0.0, 0.0],
        [0.0, 1e-300],
        [1.0, np.nan, np.inf],
        [np.nan],
        [],
        [-2.0, 1e-13, 5.0],
    ],
)
def test_a_histogram_counts_the_finite_values_whatever_they_are(tmp_path, values):
    with style.figure(tmp_path / "a.png", (3, 3)) as (ax,):
        style.histogram(ax, [np.array(values), np.array(values)], [style.AFTER, style.BEFORE])
        heights = sum(patch.get_height() for patch in ax.patches)
    assert heights == 2 * np.isfinite(values).sum()


def test_the_bar_of_equal_values_stands_on_them(tmp_path):
    """Atoms that do not move have no negative way."""
    with style.figure(tmp_path / "a.png", (3, 3)) as (ax,):
        style.histogram(ax, [np.zeros(3)], [style.AFTER])
        (bar,) = (patch for patch in ax.patches if patch.get_height())
    assert bar.get_x() + bar.get_width() / 2 == pytest.approx(0, abs=1e-12)


def test_the_colours_differ_for_readers_without_red_or_green():
    """Distances in CIELAB-like lightness and blue-yellow, which such readers keep, of the colours that mean things."""
    pairs = [(style.BEFORE, style.AFTER), (style.BETTER, style.WORSE), (style.AFTER, style.BLUE)]
    for one, other in pairs:
        assert np.linalg.norm(_kept(one) - _kept(other)) > 0.12, (one, other)


def _kept(color: str) -> np.ndarray:
    red, green, blue = (int(color[k : k + 2], 16) / 255 for k in (1, 3, 5))
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return np.array([light, (red + green) / 2 - blue])
