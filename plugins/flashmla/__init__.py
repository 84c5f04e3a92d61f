# ruff: noqa: F403 (types of all names come from their homes)
"""Attention for Multi-head Latent Attention: FlashMLA's functions, and its KV cache on a file system.

    interface    the public functions: check the arguments, choose a layer, run it
    reference    the specification, in torch
    kernel       Triton: every operator, on Hopper or in Triton's interpreter
    backward     gradients of the plain attention, in Triton
    hopper       fast path of dense decoding on sm_90, in Gluon
    hopper_fp8   the same over FP8 caches, dense and sparse
    hopper_prefill  the same of sparse prefill
    warpgroups   what the three have in common
    hopper_pairs    what `hopper` and `hopper_prefill` do with two blocks of tokens
    call         a call that has been checked: what every layer is given
    launch       how a call becomes launches: grids, scratch memory, strides
    schedule     which program works on which blocks of which sequence
    layouts      the two FP8 cache layouts, byte by byte
    paged_kv_file  `PagedKVFile`: pages of the cache in a file, on a cluster or on this machine
    page_format  the bytes of that file
    page_cache   the cache in memory that pages are loaded into and saved from
    transfer     progress of pages on their way, while decoding continues
    mover        their bytes: many reads in flight, staging memory, copies to a device
    prefix       chained hashes of tokens, and the index that finds pages by them

A user of `flash_mla` changes one import:

    from luciola.plugins.flashmla import flash_mla_with_kvcache, get_mla_metadata

Importing this package imports neither torch nor triton; using one of its names does.
"""

from typing import TYPE_CHECKING, Final

from ..lazy import lazy

if TYPE_CHECKING:
    from ..kernels.layers import *
    from .interface import *
    from .layouts import *
    from .page_cache import *
    from .page_format import *
    from .paged_kv_file import *
    from .schedule import *
    from .transfer import *

_HOMES: Final = {
    "..kernels.layers": "layer_for using_layer",
    ".interface": """
        flash_attn_varlen_func flash_attn_varlen_kvpacked_func flash_attn_varlen_qkvpacked_func flash_mla_sparse_fwd
        flash_mla_with_kvcache get_mla_metadata
    """,
    ".layouts": "dequantize_model1 dequantize_v32 empty_model1_cache quantize_model1 quantize_v32",
    ".page_cache": "PageCache",
    ".page_format": "PageLayout",
    ".paged_kv_file": "Damage Page PagedKVFile",
    ".schedule": "FlashMLASchedMeta",
    ".transfer": "LayerTransfer Transfer",
}

__all__: list[str] = sorted(["describe", *" ".join(_HOMES.values()).split()])  # noqa: PLE0605 (of the table)
__getattr__ = lazy(__name__, _HOMES)


def describe() -> dict[str, str]:
    """Return what this plugin can use on this machine, for `luciola plugins`."""
    from ..kernels import status

    return status.describe("flashmla")
