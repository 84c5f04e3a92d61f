"""The buffer of DeepEP 1."""

from luciola.plugins.deepep import Buffer

__all__ = ["Buffer"]
