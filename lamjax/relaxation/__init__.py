"""Relaxation: structures run downhill until the forces vanish, and gradients flow back through the whole way."""

from lamjax.relaxation.adjoints import Hybrid as Hybrid
from lamjax.relaxation.adjoints import Implicit as Implicit
from lamjax.relaxation.adjoints import Unrolled as Unrolled
from lamjax.relaxation.adjoints import UntilConverged as UntilConverged
from lamjax.relaxation.bands import Band as Band
from lamjax.relaxation.bands import NebConfig as NebConfig
from lamjax.relaxation.bands import interpolate as interpolate
from lamjax.relaxation.bands import neb as neb
from lamjax.relaxation.coordinates import CellConfig as CellConfig
from lamjax.relaxation.minimisers import FireConfig as FireConfig
from lamjax.relaxation.minimisers import GradientFlowConfig as GradientFlowConfig
from lamjax.relaxation.minimisers import minimiser as minimiser
from lamjax.relaxation.relax import Relaxation as Relaxation
from lamjax.relaxation.relax import RelaxConfig as RelaxConfig
from lamjax.relaxation.relax import relax as relax
from lamjax.relaxation.saddles import Climb as Climb
from lamjax.relaxation.saddles import DimerConfig as DimerConfig
from lamjax.relaxation.saddles import Saddle as Saddle
from lamjax.relaxation.saddles import at_saddle as at_saddle
from lamjax.relaxation.saddles import dimer as dimer
from lamjax.relaxation.stream import Outcome as Outcome
from lamjax.relaxation.stream import stream as stream
from lamjax.relaxation.structures import relax_structures as relax_structures
from lamjax.relaxation.structures import row as row
