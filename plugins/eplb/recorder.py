"""Live loads: how many tokens each expert of each layer gets, as an exponential average over steps.

    recorder = LoadRecorder(num_layers=58, num_experts=256, half_life_steps=1000)
    for batch in batches:
        ...  # in each layer, after routing:
        recorder.record(layer, topk_ids)
        ...
        recorder.step()
    recorder.reduced().save("lu:/serving/loads.safetensors")

R1  `record` and `step` never wait for a device: they add to counters on it. `record` may be captured in a CUDA graph.
R2  Ids of -1 (padding) do not count. Ids beyond the experts do not count either, and are an error when the loads are
    next looked at, because finding them earlier would mean waiting.
R3  The average of the first steps is unbiased: loads are tokens a step from the first step on.

The file is a safetensors file (`average`, `windows`, both float64) whose metadata says `format` and `version`.
"""

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from luciola.errors import CorruptData
from luciola.plugins.weights import Checkpoint, save

if TYPE_CHECKING:
    from luciola.client import Location

FORMAT: Final = {"format": "luciola-eplb-loads", "version": "1"}


@dataclass(frozen=True)
class Loads:
    """Recorded loads, in tokens a step; float64 on the CPU.

    average (layers, experts). windows (windows, layers, experts): means of the last windows, oldest first; maybe none.
    """

    average: Tensor
    windows: Tensor
    steps: int
    half_life_steps: float

    def save(self, location: "str | os.PathLike[str] | Location") -> None:
        """Write a file that appears complete and durable, or not at all. Raises: OSError."""
        facts = {"steps": str(self.steps), "half_life_steps": repr(self.half_life_steps)}
        tensors = {"average": self.average.double(), "windows": self.windows.double()}
        save(tensors, location, metadata={**FORMAT, **facts}, checksums=False)

    @classmethod
    def load(cls, location: "str | os.PathLike[str] | Location") -> "Loads":
        """Read what `save` has written. Raises: CorruptData for another file; OSError."""
        checkpoint = Checkpoint.open(location)
        try:
            return _loads_of(checkpoint)
        except (KeyError, ValueError) as error:
            raise CorruptData(f"not recorded loads: {error}", path=checkpoint.path) from error


def _loads_of(checkpoint: Checkpoint) -> Loads:
    facts = checkpoint.metadata
    if {key: facts.get(key) for key in FORMAT} != FORMAT:
        raise ValueError(f"its format is not {FORMAT}: {facts!s:.100}")
    shapes = {name: (info.dtype, len(info.shape)) for name, info in checkpoint.tensors.items()}
    if shapes != {"average": ("F64", 2), "windows": ("F64", 3)}:
        raise ValueError(
            "its tensors are not average (layers, experts) and windows (windows, layers, experts)"
        )
    tensors = checkpoint.load()
    if not all(bool(((each >= 0) & each.isfinite()).all()) for each in tensors.values()):
        raise ValueError("loads are finite numbers from zero on")
    return Loads(**tensors, steps=int(facts["steps"]), half_life_steps=float(facts["half_life_steps"]))


class LoadRecorder:
    """Count tokens for each expert. One for each process; not for several threads at once.

    `half_life_steps`: after so many steps a step counts half. `windows`: how many plain means, each over
    `window_steps` steps, are kept beside the average, for planning against several load patterns at once.
    `device`: where ids come from; counters live there.
    """

    def __init__(  # noqa: PLR0913 (all but the first two have defaults)
        self,
        num_layers: int,
        num_experts: int,
        *,
        half_life_steps: float = 1000.0,
        windows: int = 0,
        window_steps: int = 1000,
        device: str | torch.device = "cpu",
    ) -> None:
        for name, value, least in (
            ("num_layers", num_layers, 1),
            ("num_experts", num_experts, 1),
            ("windows", windows, 0),
            ("window_steps", window_steps, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        if not 0 < half_life_steps < math.inf:
            raise ValueError(f"half_life_steps must be positive and finite, not {half_life_steps}")
        self.num_layers, self.num_experts = num_layers, num_experts
        self.half_life_steps = float(half_life_steps)
        self.window_steps = window_steps
        self.steps = 0
        self._decay = 0.5 ** (1 / self.half_life_steps)
        # Two more columns: ids of -1, and ids beyond the experts.
        self._counts = torch.zeros(num_layers, num_experts + 2, dtype=torch.float64, device=device)
        self._sum = torch.zeros(num_layers, num_experts, dtype=torch.float64, device=device)
        self._wrong = torch.zeros(num_layers, dtype=torch.float64, device=device)
        self._window = torch.zeros_like(self._sum)
        self._windows = torch.zeros(windows, num_layers, num_experts, dtype=torch.float64, device=device)
        self._windows_full = 0
        self._steps_in_window = 0

    @property
    def device(self) -> torch.device:
        """The device of the counters."""
        return self._sum.device

    def record(self, layer: int, topk_ids: Tensor, *, expert_of_slot: Tensor | None = None) -> None:
        """Count the experts that tokens were sent to in one layer.

        `topk_ids`: integers of any shape, -1 for padding. `expert_of_slot`: the layer's row of physical_to_logical_map,
        if the ids name slots instead of experts.
        """
        self._require_layer(layer)
        if topk_ids.is_floating_point() or topk_ids.is_complex() or topk_ids.dtype is torch.bool:
            raise TypeError(f"topk_ids must be integers, not {topk_ids.dtype}")
        ids = topk_ids.reshape(-1).to(device=self._counts.device, dtype=torch.int64, non_blocking=True)
        limit = self.num_experts if expert_of_slot is None else expert_of_slot.numel()
        is_known = (ids >= 0) & (ids < limit)
        if expert_of_slot is not None:
            table = expert_of_slot.reshape(-1).to(device=ids.device, dtype=torch.int64, non_blocking=True)
            known = table[ids.clamp(0, limit - 1)]
            is_known &= (known >= 0) & (known < self.num_experts)
        else:
            known = ids
        padding, beyond = self.num_experts, self.num_experts + 1
        column = torch.where(is_known, known, torch.where(ids == -1, padding, beyond))
        self._counts[layer].scatter_add_(0, column, torch.ones_like(column, dtype=torch.float64))

    def record_counts(self, counts: Tensor, *, layer: int | None = None) -> None:
        """Add counts that are known already: (experts,) of one layer, or (layers, experts)."""
        shape: tuple[int, ...] = (
            (self.num_experts,) if layer is not None else (self.num_layers, self.num_experts)
        )
        if tuple(counts.shape) != shape:
            raise ValueError(f"counts must have shape {shape}, not {tuple(counts.shape)}")
        if layer is not None:
            self._require_layer(layer)
        rows = self._counts if layer is None else self._counts[layer]
        rows[..., : self.num_experts] += counts.to(device=rows.device, dtype=torch.float64, non_blocking=True)

    def step(self) -> None:
        """End a step: what was recorded since the last one enters the average."""
        counts = self._counts[:, : self.num_experts]
        self._sum.mul_(self._decay).add_(counts)
        self._wrong += self._counts[:, self.num_experts + 1]
        self.steps += 1
        if len(self._windows):
            self._window += counts
            self._steps_in_window += 1
            if self._steps_in_window == self.window_steps:
                self._windows = torch.cat([self._windows[1:], (self._window / self.window_steps)[None]])
                self._window.zero_()
                self._steps_in_window = 0
                self._windows_full = min(len(self._windows), self._windows_full + 1)
        self._counts.zero_()

    def loads(self) -> Loads:
        """Return what this process has recorded in complete steps; wait for the device.

        Raises: ValueError if no step has ended, or ids beyond the experts were recorded.
        """
        if self.steps == 0:
            raise ValueError("no step has ended: call step() after each forward pass")
        wrong = self._wrong.cpu()
        if bool(wrong.any()):
            layer = int(wrong.argmax())
            raise ValueError(
                f"{int(wrong.sum())} ids were neither -1 nor one of the {self.num_experts} experts, "
                f"most of them in layer {layer}"
            )
        weight = (1 - self._decay**self.steps) / (1 - self._decay)
        full = self._windows[len(self._windows) - self._windows_full :]
        return Loads((self._sum / weight).cpu(), full.cpu(), self.steps, self.half_life_steps)

    def reduced(self, group: "torch.distributed.ProcessGroup | None" = None) -> Loads:
        """Return the loads of all ranks together, on every rank; of this process alone without torch.distributed.

        Every rank calls it, after the same number of steps. Raises: as `loads`.
        """
        loads = self.loads()
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return loads
        device = self._sum.device
        both = torch.cat([loads.average[None], loads.windows]).to(device)
        torch.distributed.all_reduce(both, group=group)
        both = both.cpu()
        return Loads(both[0], both[1:], loads.steps, loads.half_life_steps)

    def _require_layer(self, layer: int) -> None:
        if not 0 <= layer < self.num_layers:
            raise ValueError(f"layer must be 0 to {self.num_layers - 1}, not {layer}")


__all__ = ["LoadRecorder", "Loads"]
