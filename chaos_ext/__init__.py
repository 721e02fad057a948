"""chaos_ext: exact Hessians, their spectra at every training step, and the chaos of neural-network training.

batch -> HessianOperator -> spectrum -> CGD step or tangent map -> exponents; see the README for two short examples.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import _contents
    from ._contents import *  # noqa: F403

    __all__: list[str] = ["__version__"]
    __all__ += _contents.__all__
else:  # which a type checker would take as leave for any name

    def __getattr__(name: str) -> Any:
        """Imports what is asked for when it is first used: a module of the package, or else all public names.

        So the command shows its help without what takes seconds to import, torch above all.
        """
        if name in _submodules():
            return importlib.import_module(f".{name}", __name__)
        if name == "__all__" or not name.startswith("__"):
            contents = vars(importlib.import_module("._contents", __name__))
            globals().update({n: contents[n] for n in ("__all__", *contents["__all__"])})
            if name in globals():
                return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})

    def _submodules() -> set[str]:
        found = {m.name for m in pkgutil.iter_modules(__path__)}  # noqa: F405
        return found - {"_C", "_C_cuda"}  # the native libraries, which are no modules of Python's
