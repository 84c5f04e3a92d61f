"""What crosses the boundaries between stages."""

from luciola.plugins.dualpipe import set_p2p_tensor_dtype, set_p2p_tensor_shapes

__all__ = ["set_p2p_tensor_dtype", "set_p2p_tensor_shapes"]
