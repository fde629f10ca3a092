"""Training: states, steps, loops over losses, whole runs of any objective, schedules, checkpoints."""

from lamjax.training.checkpoints import restore_state as restore_state
from lamjax.training.checkpoints import save_state as save_state
from lamjax.training.checkpoints import saved_steps as saved_steps
from lamjax.training.engine import events as events
from lamjax.training.engine import follow as follow
from lamjax.training.engine import prepare as prepare
from lamjax.training.loops import NonFiniteError as NonFiniteError
from lamjax.training.loops import add as add
from lamjax.training.loops import evaluate as evaluate
from lamjax.training.loops import fit as fit
from lamjax.training.loops import summary as summary
from lamjax.training.loops import updates as updates
from lamjax.training.objectives import Objective as Objective
from lamjax.training.objectives import objective as objective
from lamjax.training.run_config import RunConfig as RunConfig
from lamjax.training.schedules import ScheduleConfig as ScheduleConfig
from lamjax.training.schedules import schedule as schedule
from lamjax.training.state import OptimizerConfig as OptimizerConfig
from lamjax.training.state import TrainState as TrainState
from lamjax.training.state import init as init
from lamjax.training.state import optimizer as optimizer
from lamjax.training.state import per_member as per_member
from lamjax.training.state import result as result
from lamjax.training.step import StepSettings as StepSettings
from lamjax.training.step import make_step as make_step
