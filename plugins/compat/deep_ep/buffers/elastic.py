"""The buffer of DeepEP 2."""

from luciola.plugins.deepep import ElasticBuffer, EPHandle

__all__ = ["EPHandle", "ElasticBuffer"]
