"""Where DeepEP 1 has its buffer."""

from luciola.plugins.deepep import Buffer

__all__ = ["Buffer"]
