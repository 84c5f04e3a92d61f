"""A mixture-of-experts layer whose experts are spread over ranks: DeepEP, DeepGEMM, EPLB and weights together.

    layer      `ExpertParallel`: what users call
    routing    `PhysicalExperts`: from the experts that a router chooses to those that ranks hold
    exchange   dispatch and combine as autograd functions
    products   grouped products over a rank's experts, with gradients

The one package of plugins that imports several of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .layer import ExpertParallel
    from .routing import PhysicalExperts

__all__ = ["ExpertParallel", "PhysicalExperts"]

_MODULE_OF = {"ExpertParallel": ".layer", "PhysicalExperts": ".routing"}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
