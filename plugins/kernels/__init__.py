"""What the plugins with GPU kernels share.

layers   which layer runs a call: the torch reference, the Triton kernels or the fast path; which kernels were launched
status   what `luciola plugins` says of layers, gates and runs on this card
aot      kernels compiled without a GPU: warm caches, machine code and its gates
quantize casts to FP8 with one scale a block
kernel   pieces of Triton kernels
errors   what bad arguments raise
checks   what operators ask of a tensor
ranks    processes of a run find one another
"""

from typing import TYPE_CHECKING

from ..lazy import lazy

if TYPE_CHECKING:
    from .layers import layer, layer_for, recording, set_layer, uses_kernels, using_layer

__all__ = ["layer", "layer_for", "recording", "set_layer", "uses_kernels", "using_layer"]

__getattr__ = lazy(__name__, {".layers": " ".join(__all__)})  # torch is imported only then
