"""The DPA-3 descriptor."""

from lamjax.descriptors.dpa3.config import DPA3Config as DPA3Config
from lamjax.descriptors.dpa3.config import RepflowConfig as RepflowConfig
from lamjax.descriptors.dpa3.descriptor import dpa3 as dpa3
