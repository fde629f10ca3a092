"""Heads: what the numbers of an atom are worth."""

from lamjax.heads.base import Head as Head
from lamjax.heads.energy import EnergyHeadConfig as EnergyHeadConfig
from lamjax.heads.energy import energy_head as energy_head
