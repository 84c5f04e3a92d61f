"""DeepEP: tokens to the ranks that own their experts, and results back.

    import luciola.plugins.deepep as deep_ep            # the one import that its users change

    api            `Buffer`, with the original's names, arguments and results, and its `Config`
    normal         normal mode: each token once to every rank that has one of its experts
    low_latency    low-latency mode: a message for each token and expert
    elastic        `ElasticBuffer`: one dispatch and combine for all sizes, expanded by experts if that is wanted
    transport      how bytes travel between ranks: one interface, several backends; events and errors

Each room imports those below it: elastic, api, low_latency, normal, transport.

Importing this package imports torch only when one of its names is used.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy

if TYPE_CHECKING:
    from .api.buffer import Buffer, get_logical_domain_size, get_physical_domain_size, topk_idx_t
    from .api.config import Config
    from .elastic.buffer import ElasticBuffer
    from .elastic.experts import EPHandle
    from .transport.errors import CommunicationError, PeerLost, PeerTimeout, RanksDisagree
    from .transport.event import EventHandle, EventOverlap

__all__ = [
    "Buffer", "CommunicationError", "Config", "EPHandle", "ElasticBuffer", "EventHandle", "EventOverlap", "PeerLost",
    "PeerTimeout", "RanksDisagree", "describe", "get_logical_domain_size", "get_physical_domain_size", "topk_idx_t",
]  # fmt: skip


def describe() -> dict[str, str]:
    """Say what the plugin can use on this machine."""
    import torch

    from ..kernels import status

    on_gpus = "symmetric-memory, cuda-ipc, " if torch.cuda.is_available() else ""
    backends = ["gloo"] if torch.distributed.is_gloo_available() else []
    if torch.cuda.is_available() and torch.distributed.is_nccl_available():
        backends.insert(0, "nccl")
    transports = f"{on_gpus}shared-memory, collectives ({', '.join(backends)})"
    return {**status.describe("deepep"), "transports": transports}


_HOMES = {
    ".api.buffer": "Buffer get_logical_domain_size get_physical_domain_size topk_idx_t",
    ".api.config": "Config",
    ".elastic.buffer": "ElasticBuffer",
    ".elastic.experts": "EPHandle",
    ".transport.errors": "CommunicationError PeerLost PeerTimeout RanksDisagree",
    ".transport.event": "EventHandle EventOverlap",
}
__getattr__ = lazy(__name__, _HOMES)
