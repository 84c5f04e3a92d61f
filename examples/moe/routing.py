"""From logical experts, which a router chooses, to physical ones, which ranks hold: EPLB's placement as routing input.

The replicas of an expert take its tokens in turns, so that they share its load evenly, as EPLB's plans suppose.
"""

import torch
from torch import Tensor

from luciola.plugins.kernels.errors import BadArgument, refuse

EMPTY = -1


class PhysicalExperts:
    """The experts of one layer: `placement` (slots,) names the logical expert in each slot of all ranks, in order.

    A plan's row of `physical_to_logical_map`. Slots are shared evenly by ranks.
    Raises: BadArgument if an expert has no slot.
    """

    def __init__(self, placement: Tensor, *, ranks: int) -> None:
        if placement.dim() != 1 or placement.is_floating_point() or not placement.numel():
            refuse(
                "placement",
                f"{placement.dtype} of shape {tuple(placement.shape)}",
                "it is (slots,) of integers",
            )
        if placement.numel() % ranks:
            refuse("placement", f"of {placement.numel()} slots", f"ranks ({ranks}) must share them evenly")
        self.placement = placement.to(device="cpu", dtype=torch.int64)
        self.slots = placement.numel()
        self.ranks = ranks
        self.replicas = torch.bincount(self.placement.clamp(min=0))
        missing = (self.replicas == 0).nonzero().view(-1).tolist()
        if missing or bool((self.placement < 0).any()):
            raise BadArgument(
                f"placement has no slot for experts {missing[:10]}, or empty slots; every slot holds an expert and "
                "every expert has a slot"
            )
        self.experts = self.replicas.numel()
        order = self.placement.argsort(stable=True)
        first = self.replicas.cumsum(0) - self.replicas
        most = int(self.replicas.max())
        turn = torch.arange(most)
        at = first.unsqueeze(1) + turn % self.replicas.unsqueeze(1)
        self._slots_of = order[at]  # (experts, most): a replica's slot, round and round

    @classmethod
    def in_order(cls, experts: int, *, ranks: int) -> "PhysicalExperts":
        """Expert i in slot i."""
        return cls(torch.arange(experts), ranks=ranks)

    @property
    def slots_per_rank(self) -> int:
        return self.slots // self.ranks

    def slots_of(self, rank: int) -> Tensor:
        """The experts that one rank holds, slot by slot."""
        return self.placement[rank * self.slots_per_rank : (rank + 1) * self.slots_per_rank]

    def route(self, topk_idx: Tensor, *, offset: int = 0) -> Tensor:
        """The slot for each chosen expert; -1 stays. Waits for no device.

        Shapes: topk_idx (T, K) integers; result (T, K) int64. `offset`: the turn of the first token, another one for
        each rank, so that not all ranks begin with the first replica.
        """
        table = self._slots_of.to(topk_idx.device, non_blocking=True)
        known = (topk_idx >= 0) & (topk_idx < self.experts)
        expert = torch.where(known, topk_idx, 0).to(torch.int64)
        turn = torch.arange(offset, offset + topk_idx.shape[0], device=topk_idx.device).unsqueeze(1)
        replicas = self.replicas.to(topk_idx.device, non_blocking=True)[expert]
        return torch.where(known, table[expert, turn % replicas], EMPTY)


__all__ = ["PhysicalExperts"]
