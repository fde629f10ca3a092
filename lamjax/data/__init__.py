"""From files to batches: read, check, count, plan shapes, stack."""

from lamjax.data.batches import Batch as Batch
from lamjax.data.batches import Packed as Packed
from lamjax.data.batches import batches as batches
from lamjax.data.batches import n_batches as n_batches
from lamjax.data.batches import pack as pack
from lamjax.data.deepmd import DeepmdSystem as DeepmdSystem
from lamjax.data.pairs import Pair as Pair
from lamjax.data.pairs import StructureBatch as StructureBatch
from lamjax.data.pairs import pair_batches as pair_batches
from lamjax.data.pairs import pairs_from_frames as pairs_from_frames
from lamjax.data.pairs import read_pairs as read_pairs
from lamjax.data.plan import Bucket as Bucket
from lamjax.data.plan import Plan as Plan
from lamjax.data.plan import plan as plan
from lamjax.data.read import Frame as Frame
from lamjax.data.read import Summary as Summary
from lamjax.data.read import from_atoms as from_atoms
from lamjax.data.read import iterate as iterate
from lamjax.data.read import read as read
from lamjax.data.read import summarize as summarize
from lamjax.data.statistics import energy_bias as energy_bias
from lamjax.data.statistics import environment_statistics as environment_statistics
from lamjax.data.statistics import set_bias as set_bias
from lamjax.data.statistics import set_environment as set_environment
from lamjax.data.statistics import set_parameters as set_parameters
from lamjax.data.statistics import set_statistics as set_statistics
