"""Losses: (params, batch) -> (scalar, metrics)."""

from lamjax.losses.combine import Slots as Slots
from lamjax.losses.combine import heads_loss as heads_loss
from lamjax.losses.combine import multitask_loss as multitask_loss
from lamjax.losses.combine import same_form as same_form
from lamjax.losses.combine import weighted_sum as weighted_sum
from lamjax.losses.labels import LabelLossConfig as LabelLossConfig
from lamjax.losses.labels import Loss as Loss
from lamjax.losses.labels import errors as errors
from lamjax.losses.labels import label_loss as label_loss
from lamjax.losses.labels import predict_rows as predict_rows
from lamjax.losses.structure import StructureError as StructureError
from lamjax.losses.structure import StructureLossConfig as StructureLossConfig
from lamjax.losses.structure import structure_error as structure_error
from lamjax.losses.structure import structure_loss as structure_loss
