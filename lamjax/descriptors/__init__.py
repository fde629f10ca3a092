"""Descriptors: the surroundings of an atom as numbers that symmetry operations leave unchanged."""

from lamjax.descriptors.base import Descriptor as Descriptor
from lamjax.descriptors.base import DescriptorInput as DescriptorInput
from lamjax.descriptors.base import allowed_pairs as allowed_pairs
from lamjax.descriptors.base import mask_excluded as mask_excluded
from lamjax.descriptors.dpa1 import DPA1Config as DPA1Config
from lamjax.descriptors.dpa1 import dpa1 as dpa1
from lamjax.descriptors.dpa2 import DPA2Config as DPA2Config
from lamjax.descriptors.dpa2 import RepformerConfig as RepformerConfig
from lamjax.descriptors.dpa2 import ThreeBodyConfig as ThreeBodyConfig
from lamjax.descriptors.dpa2 import dpa2 as dpa2
from lamjax.descriptors.dpa3 import DPA3Config as DPA3Config
from lamjax.descriptors.dpa3 import RepflowConfig as RepflowConfig
from lamjax.descriptors.dpa3 import dpa3 as dpa3
from lamjax.descriptors.environment import Block as Block
from lamjax.descriptors.nequip import NequIPConfig as NequIPConfig
from lamjax.descriptors.nequip import nequip as nequip
from lamjax.descriptors.repinit import RepinitConfig as RepinitConfig
