"""Which tests run where."""

from luciola.plugins.deepgemm.testing import (
    get_arch_major,
    ignore_env,
    test_filter,
)

__all__ = [
    "get_arch_major",
    "ignore_env",
    "test_filter",
]
