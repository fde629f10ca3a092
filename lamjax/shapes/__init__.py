"""Few array shapes for many structures: their cost, which few hold all, which structures share a row, growth."""

from lamjax.shapes.cost import per_atom as per_atom
from lamjax.shapes.cost import work as work
from lamjax.shapes.growth import grow as grow
from lamjax.shapes.merging import cheapest as cheapest
from lamjax.shapes.merging import histogram as histogram
from lamjax.shapes.merging import merge as merge
from lamjax.shapes.rows import Bucket as Bucket
from lamjax.shapes.rows import RowShape as RowShape
from lamjax.shapes.rows import frames_per_batch as frames_per_batch
from lamjax.shapes.rows import row_shape as row_shape
