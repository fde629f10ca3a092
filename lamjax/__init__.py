"""lamjax: large atomic models in JAX, fine-tuned through their own relaxation."""

from importlib.metadata import version as _version

from lamjax.calculator import Calculator as Calculator
from lamjax.checkpoints import load as load
from lamjax.checkpoints import save as save
from lamjax.potential import Params as Params
from lamjax.potential import Potential as Potential
from lamjax.potential import PotentialConfig as PotentialConfig
from lamjax.potential import Prediction as Prediction
from lamjax.potential import allocate as allocate
from lamjax.potential import build as build
from lamjax.potential import predict as predict
from lamjax.potential import stress as stress
from lamjax.relaxation import Relaxation as Relaxation
from lamjax.relaxation import RelaxConfig as RelaxConfig
from lamjax.relaxation import relax as relax
from lamjax.system import Labels as Labels
from lamjax.system import System as System
from lamjax.system import from_ase as from_ase
from lamjax.system import to_ase as to_ase

__version__ = _version("lamjax")
