"""FlashMLA's package, over `luciola.plugins.flashmla`. The original's extension module `flash_mla.cuda` is not here."""

from luciola.plugins.lazy import lazy

__version__ = "1.0.0"

__all__ = [
    "flash_attn_varlen_func", "flash_attn_varlen_kvpacked_func", "flash_attn_varlen_qkvpacked_func",
    "flash_mla_sparse_fwd", "flash_mla_with_kvcache", "get_mla_metadata",
]  # fmt: skip

__getattr__ = lazy(__name__, {"luciola.plugins.flashmla": " ".join(__all__)}, {"flash_mla_interface"})
