"""DeepEP's package, over `luciola.plugins.deepep`: both buffers, and what its tests import."""

from luciola.plugins.lazy import lazy

__version__ = "2.1.0"

__all__ = [
    "Buffer", "Config", "EPHandle", "ElasticBuffer", "EventHandle", "EventOverlap", "destroy_all_managed_nccl_comm",
    "get_logical_domain_size", "get_physical_domain_size", "topk_idx_t",
]  # fmt: skip

__getattr__ = lazy(
    __name__,
    {"luciola.plugins.deepep": " ".join(__all__), ".utils.comm": "destroy_all_managed_nccl_comm"},
    {"_C", "buffer", "buffers", "utils"},
)
