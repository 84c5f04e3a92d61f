"""What the buffer of DeepEP 2 must give, in plain torch."""

from luciola.plugins.deepep.elastic.refs import (
    combine,
    dispatch,
    generate_pre_combine_data,
    ordered_accumulate,
)

__all__ = ["combine", "dispatch", "generate_pre_combine_data", "ordered_accumulate"]
