"""Relaxation: structures run downhill until the forces vanish, and gradients flow back through the whole way."""

from lamjax.relaxation.adjoints import Unrolled as Unrolled
from lamjax.relaxation.adjoints import UntilConverged as UntilConverged
from lamjax.relaxation.fire import FireConfig as FireConfig
from lamjax.relaxation.relax import Relaxation as Relaxation
from lamjax.relaxation.relax import RelaxConfig as RelaxConfig
from lamjax.relaxation.relax import relax as relax
from lamjax.relaxation.structures import relax_structures as relax_structures
