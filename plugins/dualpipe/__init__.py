"""DualPipe: pipelines that are fed from both ends.

Run one:
    pipeline      `DualPipe` and `DualPipeV`, with the arguments and results of deepseek-ai/DualPipe
    executor      one rank's step: executes the schedule's actions
    batch         cutting and joining of batches
    boundary_spec what crosses a stage boundary
    session       what the ranks share until a failure; rendezvous, watchdog, transport and failure are its parts
    grad_mirror   the sum over the two copies of a stage
    wgrad_store   weight gradients that are put off; `linear` has a layer that does so

Know one:
    schedule   what each rank does in a step, as data
    schedules  1F1B, ZB1P and ZB-V in the same words, to compare with
    verify     proves that a schedule works, or names the rank and action where it goes wrong
    event_sim  the actions of all ranks against one another; verifier and simulator share it
    costs      what a micro-batch costs in a stage
    simulate   when each task runs, idle time, peak memory
    plan       all schedules side by side for a number of devices
    timeline   a simulated step as text
    command    `luciola dualpipe plan` and `show`

Importing this package does not import torch until a name of the first half is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .boundary_spec import set_p2p_tensor_dtype, set_p2p_tensor_shapes
    from .costs import StageCosts
    from .failure import PipelineError
    from .linear import Linear
    from .pipeline import DualPipe, DualPipeV
    from .schedule import Schedule, dualpipe, dualpipev
    from .verify import InvalidSchedule, find_problems
    from .wgrad_store import WeightGradStore

__all__ = [
    "DualPipe",
    "DualPipeV",
    "InvalidSchedule",
    "Linear",
    "PipelineError",
    "Schedule",
    "StageCosts",
    "WeightGradStore",
    "describe",
    "dualpipe",
    "dualpipev",
    "find_problems",
    "set_p2p_tensor_dtype",
    "set_p2p_tensor_shapes",
]

_MODULE_OF = {
    **dict.fromkeys(("DualPipe", "DualPipeV"), ".pipeline"),
    **dict.fromkeys(("Schedule", "dualpipe", "dualpipev"), ".schedule"),
    **dict.fromkeys(("set_p2p_tensor_dtype", "set_p2p_tensor_shapes"), ".boundary_spec"),
    **dict.fromkeys(("InvalidSchedule", "find_problems"), ".verify"),
    "Linear": ".linear",
    "PipelineError": ".failure",
    "StageCosts": ".costs",
    "WeightGradStore": ".wgrad_store",
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
