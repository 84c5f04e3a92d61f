"""What DeepEP's tests and callers use beside the buffers."""

from luciola.plugins.lazy import lazy

_HOMES = {
    ".envs": """
        check_nvlink_connections check_torch_deterministic dist_print get_global_seed
        get_logical_domain_size get_physical_domain_size init_dist init_seed
    """,
    ".event": "EventHandle EventOverlap",
    ".math": """
        align calc_diff ceil_div count_bytes create_grouped_scores hash_tensor hash_tensors inplace_unique
        per_token_cast_back per_token_cast_to_fp8 safe_div
    """,
    ".testing": "bench bench_kineto",
}

__getattr__ = lazy(__name__, _HOMES, {"comm", "envs", "event", "gate", "math", "refs", "testing"})
