"""DeepEP: tokens to the ranks that own their experts, and results back.

    import luciola.plugins.deepep as deep_ep            # the one import that its users change

    buffer         `Buffer`, with the original's names, arguments and results
    arguments      what its calls may be given
    config event   what its calls take and return beside tensors; the stream on which they run
    layout         which token goes where
    normal         normal mode: each token once to every rank that has one of its experts
    low_latency    low-latency mode: a message for each token and expert
    elastic        `ElasticBuffer`: one dispatch and combine for all sizes, expanded by experts if that is wanted
    transport      how bytes travel between ranks: one interface, several backends
    quantize       what travels in fewer bytes: FP8 and LogFMT
    failure        what goes wrong between ranks

Importing this package imports torch only when one of its names is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .buffer import Buffer, get_logical_domain_size, get_physical_domain_size, topk_idx_t
    from .config import Config
    from .elastic.buffer import ElasticBuffer
    from .elastic.handle import EPHandle
    from .event import EventHandle, EventOverlap
    from .failure import CommunicationError, PeerLost, PeerTimeout, RanksDisagree

_HOMES: Final = {
    "Buffer": "buffer",
    "CommunicationError": "failure",
    "Config": "config",
    "EPHandle": "elastic.handle",
    "ElasticBuffer": "elastic.buffer",
    "EventHandle": "event",
    "EventOverlap": "event",
    "PeerLost": "failure",
    "PeerTimeout": "failure",
    "RanksDisagree": "failure",
    "get_logical_domain_size": "buffer",
    "get_physical_domain_size": "buffer",
    "topk_idx_t": "buffer",
}

__all__ = [
    "Buffer",
    "CommunicationError",
    "Config",
    "EPHandle",
    "ElasticBuffer",
    "EventHandle",
    "EventOverlap",
    "PeerLost",
    "PeerTimeout",
    "RanksDisagree",
    "describe",
    "get_logical_domain_size",
    "get_physical_domain_size",
    "topk_idx_t",
]


def describe() -> dict[str, str]:
    """What the plugin can use on this machine."""
    import torch

    from ..kernels import status

    on_gpus = "symmetric-memory, cuda-ipc, " if torch.cuda.is_available() else ""
    backends = ["gloo"] if torch.distributed.is_gloo_available() else []
    if torch.cuda.is_available() and torch.distributed.is_nccl_available():
        backends.insert(0, "nccl")
    transports = f"{on_gpus}shared-memory, collectives ({', '.join(backends)})"
    return {**status.describe("deepep"), "transports": transports}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *globals()})
