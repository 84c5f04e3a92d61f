"""DualPipe's package, over `luciola.plugins.dualpipe`."""

from luciola.plugins.lazy import lazy

__version__ = "1.0.0"

__all__ = ["DualPipe", "DualPipeV", "WeightGradStore", "set_p2p_tensor_dtype", "set_p2p_tensor_shapes"]

__getattr__ = lazy(
    __name__, {"luciola.plugins.dualpipe": " ".join(__all__)}, {"comm", "dualpipe", "dualpipev", "utils"}
)
