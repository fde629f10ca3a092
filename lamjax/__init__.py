"""lamjax: large atomic models in JAX, fine-tuned through their own relaxation.

The public names are in `__init__.pyi`; a name is imported when it is first used.
"""

from importlib.metadata import version as _version

from lazy_loader import attach_stub as _attach

__getattr__, __dir__, __all__ = _attach(__name__, __file__)
__version__ = _version("lamjax")
