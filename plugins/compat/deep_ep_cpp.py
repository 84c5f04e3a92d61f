"""What programs take from the extension module of DeepEP 1."""

from luciola.plugins.deepep import Config, EventHandle, topk_idx_t

__all__ = ["Config", "EventHandle", "topk_idx_t"]
