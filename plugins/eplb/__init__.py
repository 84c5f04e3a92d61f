"""Expert-parallel load balancing: which GPU holds which replicas of which experts of a mixture-of-experts model.

    rebalance    what users call: tensors in, tensors out, inputs checked
    greedy       the plan of deepseek-ai/EPLB, bit for bit, in numpy over all layers at once
    reference    the same in plain torch: the specification
    balance      loads of GPUs, and a bound that no placement can beat
    optimal      plans close to that bound, by exchanges between GPUs (exchange)
    incremental  the best plan within a budget of moves
    moves        what has to move between two placements, and slots that stay where they are
    recorder     live loads: tensors of ids in, a file on a location out
    loader       the experts that a GPU lacks, from a checkpoint into its slots
    refresh      all of this while a model runs: plan and load in the background, change at an agreed step
    command      `luciola eplb plan`, which writes a plan_file

`rebalance_experts` has the name, arguments and outputs of deepseek-ai/EPLB; its users change one import. Importing this
package imports neither torch nor numpy until one of its names is used.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy

if TYPE_CHECKING:
    from .loader import ExpertNames, ExpertReport, load_experts
    from .moves import Move
    from .rebalance import (
        Placement,
        align,
        gpu_loads,
        imbalance,
        lower_bound,
        moves_between,
        rebalance_experts,
        rebalance_incrementally,
    )
    from .recorder import LoadRecorder, Loads
    from .refresh import ExpertRefresher, RefreshFailed

__all__ = [
    "ExpertNames", "ExpertRefresher", "ExpertReport", "LoadRecorder", "Loads", "Move", "Placement", "RefreshFailed",
    "align", "describe", "gpu_loads", "imbalance", "load_experts", "lower_bound", "moves_between",
    "rebalance_experts", "rebalance_incrementally",
]  # fmt: skip


def describe() -> dict[str, str]:
    """What `luciola plugins` shows."""
    return {"state": "ready: any CPU, one core"}


_HOMES = {
    ".loader": "ExpertNames ExpertReport load_experts",
    ".moves": "Move",
    ".rebalance": """
        Placement align gpu_loads imbalance lower_bound moves_between rebalance_experts
        rebalance_incrementally
    """,
    ".recorder": "LoadRecorder Loads",
    ".refresh": "ExpertRefresher RefreshFailed",
}
__getattr__ = lazy(__name__, _HOMES)
