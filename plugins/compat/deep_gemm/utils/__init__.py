"""What DeepGEMM's tests and callers use beside the operators."""

from luciola.plugins.lazy import lazy

from . import layout, math

__getattr__ = lazy(__name__, {".layout": " ".join(layout.__all__), ".math": " ".join(math.__all__)}, {"dist"})
