"""`import deep_gemm` in programs that cannot be changed.

    from luciola.plugins.deepgemm import shim
    shim.install()
    import deep_gemm                                  # this plugin

Provided: `deep_gemm`, `deep_gemm.testing`, `deep_gemm.utils` and its `math`, `layout` and `dist`.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Final

from ..kernels.shim import add_module, must_stand
from . import distributed, fp4, quantize, scales, settings, testing

NAME: Final = "deep_gemm"


def install(*, replace: bool = False) -> None:
    """Makes this plugin the module `deep_gemm` of this process.

    Raises: BadCall if the original is installed, unless `replace`.
    """
    package = import_module(__package__)
    if not must_stand(NAME, package, replace=replace):
        return
    utils = _module(f"{NAME}.utils", quantize, fp4, scales, settings)
    utils.math = _module(f"{NAME}.utils.math", quantize, fp4)  # type: ignore[attr-defined]
    utils.layout = _module(f"{NAME}.utils.layout", scales, settings)  # type: ignore[attr-defined]
    utils.dist = _module(f"{NAME}.utils.dist", distributed)  # type: ignore[attr-defined]
    sys.modules[f"{NAME}.testing"] = testing
    sys.modules[NAME] = package


def _module(name: str, *sources: ModuleType) -> ModuleType:
    return add_module(name, {each: getattr(source, each) for source in sources for each in source.__all__})


__all__ = ["install"]
