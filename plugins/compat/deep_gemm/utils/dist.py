"""Ranks of a run."""

from luciola.plugins.deepgemm.distributed import (
    dist_print,
    init_dist,
    uneven_all_gather,
)

__all__ = [
    "dist_print",
    "init_dist",
    "uneven_all_gather",
]
