"""Scores of experts that load one rank more."""

from luciola.plugins.deepep.gate import get_unbalanced_scores

__all__ = ["get_unbalanced_scores"]
