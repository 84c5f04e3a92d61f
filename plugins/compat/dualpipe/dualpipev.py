"""The V-shaped pipeline."""

from luciola.plugins.dualpipe import DualPipeV

__all__ = ["DualPipeV"]
