"""`import deep_gemm` in programs that cannot be changed.

    from luciola.plugins.deepgemm import shim
    shim.install()
    import deep_gemm                                  # this plugin

Provided: `deep_gemm`, `deep_gemm.utils`, `deep_gemm.utils.math`, `deep_gemm.utils.layout`, `deep_gemm.testing`.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Final

from ..kernels.errors import BadCall
from . import fp4, quantize, scales, settings, testing

NAME: Final = "deep_gemm"


def install(*, replace: bool = False) -> None:
    """Makes this plugin the module `deep_gemm` of this process.

    Raises: BadCall if the original is installed, unless `replace`.
    """
    package = import_module(__package__)
    if sys.modules.get(NAME) is package:
        return
    if not replace and (NAME in sys.modules or find_spec(NAME) is not None):
        raise BadCall("deep_gemm is installed: uninstall it, or call install(replace=True)")
    utils = _module(f"{NAME}.utils", quantize, fp4, scales, settings)
    utils.math = _module(f"{NAME}.utils.math", quantize, fp4)  # type: ignore[attr-defined]
    utils.layout = _module(f"{NAME}.utils.layout", scales, settings)  # type: ignore[attr-defined]
    sys.modules[f"{NAME}.testing"] = testing
    sys.modules[NAME] = package


def _module(name: str, *sources: ModuleType) -> ModuleType:
    module = ModuleType(name, f"Stands for {name}.")
    for source in sources:
        for each in source.__all__:
            setattr(module, each, getattr(source, each))
    sys.modules[name] = module
    return module


__all__ = ["install"]
