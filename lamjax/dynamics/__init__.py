"""Molecular dynamics of one structure: jax-md's integrators over any potential, in chunks that stay on the device."""

from lamjax.dynamics.ensembles import Ensemble as Ensemble
from lamjax.dynamics.ensembles import NPTConfig as NPTConfig
from lamjax.dynamics.ensembles import NVEConfig as NVEConfig
from lamjax.dynamics.ensembles import NVTConfig as NVTConfig
from lamjax.dynamics.ensembles import npt as npt
from lamjax.dynamics.ensembles import nve as nve
from lamjax.dynamics.ensembles import nvt as nvt
from lamjax.dynamics.output import Output as Output
from lamjax.dynamics.output import paths as paths
from lamjax.dynamics.records import Record as Record
from lamjax.dynamics.restart import identity as identity
from lamjax.dynamics.restart import restore as restore
from lamjax.dynamics.restart import save as save
from lamjax.dynamics.run import DynamicsError as DynamicsError
from lamjax.dynamics.run import Simulation as Simulation
from lamjax.dynamics.run import begin as begin
from lamjax.dynamics.run import observe as observe
from lamjax.dynamics.run import simulate as simulate
from lamjax.dynamics.trajectory import SUFFIXES as SUFFIXES
from lamjax.dynamics.trajectory import Scene as Scene
from lamjax.dynamics.trajectory import frames as frames
