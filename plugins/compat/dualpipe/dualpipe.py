"""The bidirectional pipeline."""

from luciola.plugins.dualpipe import DualPipe

__all__ = ["DualPipe"]
