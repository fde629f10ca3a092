# For the type checker alone: arrays of JAX and of numpy stand for one another all over this library, so that the kind
# of an array is not checked; its dtype and axes are for the reader.
from typing import Annotated as Bool
from typing import Annotated as Complex
from typing import Annotated as Float
from typing import Annotated as Int
from typing import Any, TypeAlias

Array: TypeAlias = Any
PyTree: TypeAlias = Any
__all__ = ["Array", "Bool", "Complex", "Float", "Int", "PyTree"]
