"""Domains: one large structure over several devices, each with a part of the cell and a halo of atoms around it."""

from lamjax.domains.division import Domains as Domains
from lamjax.domains.division import divide as divide
from lamjax.domains.evaluation import DividedNeighbors as DividedNeighbors
from lamjax.domains.evaluation import allocate as allocate
from lamjax.domains.evaluation import check as check
from lamjax.domains.evaluation import energy as energy
from lamjax.domains.evaluation import predict as predict
from lamjax.domains.evaluation import update as update
