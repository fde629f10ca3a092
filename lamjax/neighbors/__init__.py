"""Neighbour lists in any cell."""

from lamjax.lattice import image_offsets as image_offsets
from lamjax.neighbors.host import allocate as allocate
from lamjax.neighbors.host import count as count
from lamjax.neighbors.host import host_neighbors as host_neighbors
from lamjax.neighbors.host import plan_capacities as plan_capacities
from lamjax.neighbors.search import all_images as all_images
from lamjax.neighbors.search import update as update
from lamjax.neighbors.types import Neighbors as Neighbors
from lamjax.neighbors.types import Shell as Shell
from lamjax.neighbors.types import check_shells as check_shells
from lamjax.neighbors.types import displacements as displacements
