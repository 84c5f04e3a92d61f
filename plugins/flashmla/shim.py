"""`import flash_mla` in programs that cannot be changed.

    from luciola.plugins.flashmla import shim
    shim.install()
    import flash_mla                                  # this plugin

Provided: `flash_mla` and `flash_mla.flash_mla_interface`, with the original's names alone. Its `flash_mla.cuda`, which
its own functions call, is not there.
"""

import sys
from types import ModuleType
from typing import Any, Final

from ..kernels.shim import add_module, must_stand
from . import interface
from .schedule import FlashMLASchedMeta

NAME: Final = "flash_mla"
VERSION: Final = "1.0.0"  # of the original whose names and arguments these are

_package: Final = ModuleType(NAME, f"Stands for {NAME}.")


def install(*, replace: bool = False) -> None:
    """Makes this plugin the module `flash_mla` of this process.

    Raises: BadCall if the original is installed, unless `replace`.
    """
    if not must_stand(NAME, _package, replace=replace):
        return
    functions: dict[str, Any] = {each: getattr(interface, each) for each in interface.__all__}
    inner = add_module(f"{NAME}.flash_mla_interface", functions | {"FlashMLASchedMeta": FlashMLASchedMeta})
    vars(_package).update(functions, __version__=VERSION, __path__=[], flash_mla_interface=inner)
    vars(_package)["__all__"] = sorted(functions)
    sys.modules[NAME] = _package


__all__ = ["install"]
