"""The DPA-2 descriptor."""

from lamjax.descriptors.dpa2.config import DPA2Config as DPA2Config
from lamjax.descriptors.dpa2.config import RepformerConfig as RepformerConfig
from lamjax.descriptors.dpa2.config import ThreeBodyConfig as ThreeBodyConfig
from lamjax.descriptors.dpa2.descriptor import dpa2 as dpa2
