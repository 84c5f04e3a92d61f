"""Traffic of a rank: how many tokens and bytes went to each rank, and how many tokens to each expert.

    traffic = Traffic(ranks=buffer.group_size, experts=slots, device=x.device)
    traffic.count(topk_idx, hidden=x.shape[1])         # beside each dispatch
    traffic.add_to(recorder, layer=3, expert_of_slot=plan.placement[3])
    print(traffic.table())

`add_to` brings the counts since the last call to a recorder that has EPLB's `record_counts`, whose file `luciola eplb`
reads. Counting waits for no device.

Tokens to ranks are counted as normal mode sends them, once for each rank, or with `once_per_rank=False` as low-latency
mode does, once for each expert.
"""

from typing import Final, Protocol

import torch
from torch import Tensor

from ..kernels.errors import BadArgument, BadType, refuse

ELEMENT_BYTES: Final = {"bf16": 2.0, "fp8": 1.0 + 4 / 128}  # FP8 with its scales


class Recorder(Protocol):
    """What EPLB's `LoadRecorder` takes."""

    num_experts: int

    def record_counts(self, counts: Tensor, *, layer: int | None = None) -> None:
        """Tokens of each logical expert."""


class Traffic:
    """Counters of what this rank sends; they live on `device`.

    to_rank (ranks,) tokens, bytes_to_rank (ranks,), to_expert (experts,) tokens: int64, since the start or `reset`.
    """

    def __init__(self, *, ranks: int, experts: int, device: str | torch.device = "cpu") -> None:
        if ranks <= 0 or experts <= 0 or experts % ranks:
            refuse(
                "ranks, experts", (ranks, experts), "both must be positive, and experts a multiple of ranks"
            )
        self.ranks, self.experts = ranks, experts
        self.to_rank = torch.zeros(ranks, dtype=torch.int64, device=device)
        self.bytes_to_rank = torch.zeros(ranks, dtype=torch.int64, device=device)
        self.to_expert = torch.zeros(experts, dtype=torch.int64, device=device)
        self._told = torch.zeros(experts, dtype=torch.int64, device=device)

    def count(self, topk_idx: Tensor, *, hidden: int, kind: str = "bf16", once_per_rank: bool = True) -> None:
        """Adds one dispatch. topk_idx (T, K): physical experts, -1 for none. `kind`: "bf16" or "fp8"."""
        if topk_idx.dim() != 2 or topk_idx.is_floating_point():
            raise BadType(
                f"topk_idx is {topk_idx.dtype} of shape {tuple(topk_idx.shape)}; it is (tokens, k) of integers"
            )
        if kind not in ELEMENT_BYTES:
            refuse("kind", repr(kind), f"it must be one of {', '.join(ELEMENT_BYTES)}")
        ids = topk_idx.to(self.to_expert.device, torch.int64, non_blocking=True)
        known = (ids >= 0) & (ids < self.experts)
        column = torch.where(known, ids, self.experts)
        counts = torch.zeros(self.experts + 1, dtype=torch.int64, device=ids.device)
        counts.scatter_add_(0, column.reshape(-1), torch.ones_like(column).reshape(-1))
        self.to_expert += counts[:-1]
        if once_per_rank:
            rank = torch.where(known, ids // (self.experts // self.ranks), self.ranks)
            goes = torch.zeros((ids.shape[0], self.ranks + 1), dtype=torch.int64, device=ids.device)
            goes.scatter_(1, rank, 1)
            sent = goes[:, :-1].sum(0)
        else:
            sent = counts[:-1].view(self.ranks, -1).sum(1)
        self.to_rank += sent
        self.bytes_to_rank += sent * int(hidden * ELEMENT_BYTES[kind])

    def add_to(self, recorder: Recorder, *, layer: int, expert_of_slot: Tensor | None = None) -> None:
        """Gives a recorder what was counted for each logical expert since the last time.

        `expert_of_slot` (experts,): the logical expert in each slot, if they are not the same.
        """
        new = self.to_expert - self._told
        self._told = self.to_expert.clone()
        if expert_of_slot is not None:
            if tuple(expert_of_slot.shape) != (self.experts,):
                raise BadArgument(
                    f"expert_of_slot is of shape {tuple(expert_of_slot.shape)}; it must be ({self.experts},)"
                )
            logical = torch.zeros(recorder.num_experts, dtype=torch.int64, device=new.device)
            new = logical.index_add_(0, expert_of_slot.to(new.device, torch.int64), new)
        recorder.record_counts(new, layer=layer)

    def reset(self) -> None:
        """Begins anew; what was not given to a recorder is lost."""
        for each in (self.to_rank, self.bytes_to_rank, self.to_expert, self._told):
            each.zero_()

    def table(self) -> str:
        """A line for each rank. Waits for the device."""
        per_rank = self.to_expert.view(self.ranks, -1)
        lines = ["rank     tokens        bytes   busiest expert"]
        for rank, (tokens, size) in enumerate(
            zip(self.to_rank.tolist(), self.bytes_to_rank.tolist(), strict=True)
        ):
            busiest = int(per_rank[rank].argmax())
            expert = rank * per_rank.shape[1] + busiest
            lines.append(f"{rank:4} {tokens:10} {size:12}   {expert} ({int(per_rank[rank, busiest])} tokens)")
        return "\n".join(lines)


__all__ = ["Recorder", "Traffic"]
