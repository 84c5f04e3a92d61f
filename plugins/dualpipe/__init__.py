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
    verify     proves that a schedule works, or names the rank and action where it goes wrong
    simulate   when each task runs, idle time, a timeline as text
    command    `luciola dualpipe show`

Importing this package does not import torch until a name of the first half is used.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy

if TYPE_CHECKING:
    from .boundary_spec import set_p2p_tensor_dtype, set_p2p_tensor_shapes
    from .failure import PipelineError
    from .linear import Linear
    from .pipeline import DualPipe, DualPipeV
    from .schedule import Schedule, dualpipe, dualpipev
    from .simulate import StageCosts
    from .verify import find_problems
    from .wgrad_store import WeightGradStore

__all__ = [
    "DualPipe", "DualPipeV", "Linear", "PipelineError", "Schedule", "StageCosts", "WeightGradStore", "describe",
    "dualpipe", "dualpipev", "find_problems", "set_p2p_tensor_dtype", "set_p2p_tensor_shapes",
]  # fmt: skip


def describe() -> dict[str, str]:
    """What `luciola plugins` shows."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "state": "ready: any number of processes on CPUs (gloo)",
        "gpu": f"{gpus} GPUs (NCCL)" if gpus else "none on this machine",
    }


_HOMES = {
    ".boundary_spec": "set_p2p_tensor_dtype set_p2p_tensor_shapes",
    ".failure": "PipelineError",
    ".linear": "Linear",
    ".pipeline": "DualPipe DualPipeV",
    ".schedule": "Schedule dualpipe dualpipev",
    ".simulate": "StageCosts",
    ".verify": "find_problems",
    ".wgrad_store": "WeightGradStore",
}
__getattr__ = lazy(__name__, _HOMES)
