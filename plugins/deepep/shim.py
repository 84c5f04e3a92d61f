"""`import deep_ep` in programs that cannot be changed.

    from luciola.plugins.deepep import shim
    shim.install()
    import deep_ep                                    # this plugin

Provided: `deep_ep`, `deep_ep.buffer`, `deep_ep.buffers.legacy`, `deep_ep.buffers.elastic`, `deep_ep.utils` with its
modules `envs`, `math`, `testing`, `refs`, `gate` and `event`, and `deep_ep_cpp` (`Config`, `EventHandle`,
`topk_idx_t`).
"""

import sys
from importlib import import_module
from typing import Any, Final

from ..kernels.shim import add_module, must_stand
from . import buffer, config, event, gate, quantize, testing
from .elastic import refs
from .elastic.buffer import ElasticBuffer
from .elastic.handle import EPHandle

NAME: Final = "deep_ep"
_CASTS: Final = ("calc_diff", "per_token_cast_back", "per_token_cast_to_fp8")
_ENVS: Final = (
    "dist_print",
    "get_global_seed",
    "get_logical_domain_size",
    "get_physical_domain_size",
    "init_dist",
    "init_seed",
)
_MEASURES: Final = ("bench", "bench_kineto")


def install(*, replace: bool = False) -> None:
    """Makes this plugin the module `deep_ep` of this process.

    Raises: BadCall if the original is installed, unless `replace`.
    """
    package = import_module(__package__)
    if not must_stand(NAME, package, replace=replace):
        return
    events: dict[str, Any] = {name: getattr(event, name) for name in event.__all__}
    casts = {name: getattr(quantize, name) for name in _CASTS}
    others = {name: getattr(testing, name) for name in testing.__all__}
    math = casts | {name: each for name, each in others.items() if name not in {*_ENVS, *_MEASURES}}
    modules = {
        "utils.event": events,
        "utils.envs": {name: others[name] for name in _ENVS},
        "utils.testing": {name: others[name] for name in _MEASURES},
        "utils.math": math,
        "utils.gate": {name: getattr(gate, name) for name in gate.__all__},
        "utils.refs": {name: getattr(refs, name) for name in refs.__all__},
        "utils": events | casts | others,
        "buffer": {"Buffer": buffer.Buffer},
        "buffers": {},
        "buffers.legacy": {"Buffer": buffer.Buffer},
        "buffers.elastic": {"EPHandle": EPHandle, "ElasticBuffer": ElasticBuffer},
    }
    for name, members in modules.items():
        add_module(f"{NAME}.{name}", members)
    for name in modules:
        parent, _, child = f"{NAME}.{name}".rpartition(".")
        if parent != NAME:
            setattr(sys.modules[parent], child, sys.modules[f"{NAME}.{name}"])
    add_module(
        "deep_ep_cpp",
        {"Config": config.Config, "EventHandle": event.EventHandle, "topk_idx_t": buffer.topk_idx_t},
    )
    sys.modules[NAME] = package


__all__ = ["install"]
