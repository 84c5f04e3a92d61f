"""What programs take from DeepEP's extension module."""

from luciola.plugins.deepep import Config, EventHandle, topk_idx_t

__all__ = ["Config", "EventHandle", "topk_idx_t"]
