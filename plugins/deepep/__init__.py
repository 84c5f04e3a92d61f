"""DeepEP: tokens to the ranks that own their experts, and results back.

    import luciola.plugins.deepep as deep_ep            # the one import that its users change

    buffer         `Buffer`, with the original's names, arguments and results
    arguments      what its calls may be given
    config event   what its calls take and return beside tensors
    reference      normal mode's specification: what one process computes that has all ranks' inputs
    layout         which token goes where
    exchange       rows of one set of ranks to another and back, over a transport, in turns
    normal         dispatch and combine on one node, made of `layout` and `exchange`
    two_hop        the same over several nodes
    captured       the same without the host, so that a CUDA graph can hold it; `ways` chooses among the three
    low_latency    low-latency mode
    elastic        `ElasticBuffer`: one dispatch and combine for all sizes, expanded by experts if that is wanted
    rows results   rows of CPU tensors moved, summed and cast by the native module; memory that results are made in
    moe            a mixture-of-experts layer made of this, DeepGEMM, EPLB and weights
    quantize       what travels in fewer bytes: FP8 and LogFMT
    traffic        tokens to each rank and expert, for EPLB
    machine        kernels compiled without a GPU, and gates for their machine code
    kernel launch  Triton kernels that count, pack, wait and reduce over a transport's memory
    transport      how bytes travel between ranks: one interface, several backends
    failure        what goes wrong between ranks
    settings       what the environment chooses
    gate           scores of experts that load one rank more, for test programs
    shim           `import deep_ep` in programs that cannot be changed

Importing this package imports torch only when one of its names is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .buffer import Buffer, topk_idx_t
    from .config import Config
    from .elastic.buffer import ElasticBuffer
    from .elastic.handle import EPHandle
    from .event import EventHandle, EventOverlap
    from .failure import CommunicationError, PeerLost, PeerTimeout, RanksDisagree
    from .testing import get_logical_domain_size, get_physical_domain_size

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
    "get_logical_domain_size": "testing",
    "get_physical_domain_size": "testing",
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
    transports = f"{on_gpus}shared-memory, mixed, collectives ({', '.join(backends)}), messages"
    return {**status.describe("deepep"), "transports": transports}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *globals()})
