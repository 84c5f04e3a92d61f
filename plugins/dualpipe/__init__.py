"""DualPipe: pipelines that are fed from both ends.

Run one:
    pipeline      `DualPipe` and `DualPipeV`, with the arguments and results of deepseek-ai/DualPipe
    play          one rank's step: plays the schedule's actions
    batch border  cutting and joining of batches; what crosses a stage border
    session       what the ranks share until a failure; board, watch, transport and failure are its parts
    mirror        the sum over the two copies of a stage
    weight_store  weight gradients that are put off; `linear` has a layer that does so

Know one:
    schedule   what each rank does in a step, as data
    schedules  1F1B, interleaved 1F1B, ZB1P and ZB-V in the same words, to compare with
    verify     proves that a schedule works, or names the rank and action where it goes wrong
    machine    plays the actions of all ranks against one another; verifier and simulator share it
    costs      what a micro-batch costs in each stage; `measure` finds out
    simulate   when each task runs, idle time, peak memory
    plan       compares all schedules for a number of devices and their memory, and picks the best
    timeline   draws a simulated step as a picture or as text
    command    `luciola dualpipe plan`, `plot` and `show`

Importing this package does not import torch until a name of the first half is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .border import set_p2p_tensor_dtype, set_p2p_tensor_shapes
    from .costs import StageCosts
    from .failure import PipelineError
    from .linear import Linear
    from .measure import measure_costs
    from .pipeline import DualPipe, DualPipeV
    from .plan import best_schedule
    from .schedule import Schedule, dualpipe, dualpipev
    from .verify import InvalidSchedule, find_problems
    from .weight_store import WeightGradStore

__all__ = [
    "DualPipe",
    "DualPipeV",
    "InvalidSchedule",
    "Linear",
    "PipelineError",
    "Schedule",
    "StageCosts",
    "WeightGradStore",
    "best_schedule",
    "describe",
    "dualpipe",
    "dualpipev",
    "find_problems",
    "measure_costs",
    "set_p2p_tensor_dtype",
    "set_p2p_tensor_shapes",
]

_MODULE_OF = {
    **dict.fromkeys(("DualPipe", "DualPipeV"), ".pipeline"),
    **dict.fromkeys(("Schedule", "dualpipe", "dualpipev"), ".schedule"),
    **dict.fromkeys(("set_p2p_tensor_dtype", "set_p2p_tensor_shapes"), ".border"),
    **dict.fromkeys(("InvalidSchedule", "find_problems"), ".verify"),
    "Linear": ".linear",
    "PipelineError": ".failure",
    "StageCosts": ".costs",
    "WeightGradStore": ".weight_store",
    "best_schedule": ".plan",
    "measure_costs": ".measure",
}


def describe() -> dict[str, str]:
    """What `luciola plugins` shows."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "state": "ready: any number of processes on CPUs (gloo)",
        "gpu": f"{gpus} GPUs (NCCL)" if gpus else "none on this machine",
    }


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
