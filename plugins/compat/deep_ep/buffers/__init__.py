"""The buffers of DeepEP 1 and 2."""

from luciola.plugins.lazy import lazy

__getattr__ = lazy(__name__, {}, {"elastic", "legacy"})
