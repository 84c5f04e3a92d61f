"""A mixture-of-experts layer over ranks: dispatch, grouped products, combine; forward and backward.

    experts = PhysicalExperts(plan.placement[layer], ranks=group.size())
    layer = ExpertParallel(buffer, experts, hidden=7168, width=2048)
    layer.load_weights("lu:/models/v3", template="model.layers.{layer}.mlp.experts.{expert}.{name}", layer=3)
    y = layer(x, topk_idx, topk_weights)

An expert is down(silu(gate(x)) · up(x)). Its weights are read for the slots that this rank serves and no others.

X1  All ranks call the layer, and its backward, in the same order, also without tokens.
X2  Replicas of an expert stay equal if `sum_replica_gradients` is called before each step of the optimizer.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from luciola.plugins.deepep import Buffer
from luciola.plugins.deepgemm import (
    m_grouped_bf16_gemm_nt_masked,
    m_grouped_fp8_gemm_nt_masked,
    quantize_activations,
)
from luciola.plugins.eplb import ExpertNames, ExpertReport, LoadRecorder, load_experts
from luciola.plugins.kernels.errors import BadType, refuse
from luciola.plugins.weights import Checkpoint

from .exchange import Exchange
from .products import PRECISIONS, Grouped, Operand, Precision, as_operand, grouped_linear
from .routing import PhysicalExperts

if TYPE_CHECKING:
    from luciola.client import Location

# As DeepSeek's checkpoints name them.
GATE: Final = "gate_proj.weight"
UP: Final = "up_proj.weight"
DOWN: Final = "down_proj.weight"


class ExpertParallel(nn.Module):
    """The experts of one layer, spread over the ranks of a `Buffer`.

    Parameters: gate_up (slots of this rank, 2 · width, hidden), gate first; down (slots, hidden, width). Any float
    type; products are of BF16, or FP8 forward with `precision="fp8"`. `recorder`: counts the tokens of each logical
    expert, as `layer` of it.
    """

    def __init__(  # noqa: PLR0913 (all but the first two have names)
        self,
        buffer: Buffer,
        experts: PhysicalExperts,
        *,
        hidden: int,
        width: int,
        precision: Precision = "bf16",
        dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device = "cpu",
        recorder: LoadRecorder | None = None,
        layer: int = 0,
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            refuse("precision", repr(precision), f"it must be one of {', '.join(PRECISIONS)}")
        if buffer.group_size != experts.ranks:
            refuse("experts", f"spread over {experts.ranks} ranks", f"the buffer has {buffer.group_size}")
        if hidden % 8 or width % 8 or min(hidden, width) <= 0:
            refuse("hidden, width", (hidden, width), "both must be positive multiples of 8")
        self.buffer, self.experts = buffer, experts
        self.hidden, self.width, self.precision = hidden, width, precision
        self.recorder, self.layer = recorder, layer
        self._operands: dict[str, tuple[Any, ...]] = {}
        slots = experts.slots_per_rank
        self.gate_up = nn.Parameter(torch.zeros(slots, 2 * width, hidden, dtype=dtype, device=device))
        self.down = nn.Parameter(torch.zeros(slots, hidden, width, dtype=dtype, device=device))

    def load_weights(
        self,
        location: "str | os.PathLike[str] | Location | Checkpoint",
        *,
        template: str,
        layer: int = 0,
        names: Sequence[str] = (GATE, UP, DOWN),
    ) -> ExpertReport:
        """Reads the experts of this rank's slots from a checkpoint, with names as `eplb.ExpertNames` has them.

        `layer`: the number in {layer}. `names`: of gate, up and down. Raises: KeyError, CorruptData, OSError.
        """
        if len(names) != 3:
            refuse("names", list(names), "it names gate, up and down")
        checkpoint = location if isinstance(location, Checkpoint) else Checkpoint.open(location)
        gate, up = self.gate_up.detach().chunk(2, dim=1)
        slots = [dict(zip(names, (gate, up, self.down.detach()), strict=True))]
        return load_experts(
            checkpoint,
            slots,
            self.experts.placement[None],
            names=ExpertNames(template, layers=[layer]),
            gpu=self.buffer.rank,
            num_gpus=self.experts.ranks,
            convert=True,
        )

    def forward(self, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        """For each token the weighted sum of its experts' answers.

        Shapes: x (T, hidden) bfloat16, topk_idx (T, K) logical experts, -1 for none, topk_weights (T, K) float32;
        result (T, hidden) bfloat16.
        """
        slots = self._route(x, topk_idx, topk_weights)
        exchange = Exchange(self.buffer, slots, self.experts.slots)
        rows, weights = exchange.dispatch(x, topk_weights)
        grouped = Grouped.of(exchange.local_idx, torch.tensor(exchange.counts, dtype=torch.int64))
        inner = grouped_linear(grouped.gather(rows), self.gate_up, grouped, precision=self.precision)
        answers = grouped_linear(_activated(inner), self.down, grouped, precision=self.precision)
        return exchange.combine(grouped.reduce(answers, weights))

    @torch.no_grad()
    def decode(self, x: Tensor, topk_idx: Tensor, topk_weights: Tensor, *, max_tokens: int) -> Tensor:
        """As `forward`, by low-latency mode and masked products: nothing waits for the device. No gradients.

        `max_tokens`: the most tokens of any rank. The buffer must be large enough for low-latency mode.
        """
        slots = self._route(x, topk_idx, topk_weights)
        fp8 = self.precision == "fp8"
        rows, counts, handle, _, _ = self.buffer.low_latency_dispatch(
            x, slots, max_tokens, self.experts.slots, use_fp8=fp8
        )
        expected = max(1, x.shape[0] * topk_idx.shape[1] // self.experts.slots_per_rank)
        inner = _masked(rows, self._operand("gate_up"), counts, expected)
        activated = _activated(inner)
        hidden = _quantized(activated) if fp8 else activated
        answers = self.buffer.get_next_low_latency_combine_buffer(handle)
        _masked(hidden, self._operand("down"), counts, expected, into=answers)
        combined, _, _ = self.buffer.low_latency_combine(answers, slots, topk_weights, handle, zero_copy=True)
        return combined

    @torch.no_grad()
    def sum_replica_gradients(self) -> None:
        """Adds up the gradients of an expert's replicas, on every rank that holds one. All ranks call it."""
        shared = (self.experts.replicas > 1).nonzero().view(-1)
        if not len(shared):
            return
        own = self.experts.slots_of(self.buffer.rank)
        index = torch.full((self.experts.experts,), -1)
        index[shared] = torch.arange(len(shared))
        slots = (index[own] >= 0).nonzero().view(-1)
        for parameter in (self.gate_up, self.down):
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            total = grad.new_zeros((len(shared), *grad.shape[1:]), dtype=torch.float32)
            rows = index[own[slots]].to(grad.device)
            total.index_add_(0, rows, grad[slots.to(grad.device)].float())
            dist.all_reduce(total, group=self.buffer.group)
            grad[slots.to(grad.device)] = total[rows].to(grad.dtype)
            parameter.grad = grad

    def _operand(self, name: str) -> Operand:
        """A weight as products take it, made again when the weight has changed."""
        weight: Tensor = getattr(self, name)
        version = (weight.data_ptr(), weight._version, self.precision)  # noqa: SLF001 (torch has no other way)
        if self._operands.get(name, (None,))[0] != version:
            operand = as_operand(weight, self.precision)
            self._operands[name] = (version, operand)
        made: Operand = self._operands[name][1]
        return made

    def _route(self, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16 or topk_weights.dtype != torch.float32:
            raise BadType(
                f"x and topk_weights are {x.dtype} and {topk_weights.dtype}; they must be bfloat16 and float32"
            )
        if x.dim() != 2 or x.shape[1] != self.hidden:
            refuse("x", f"of shape {tuple(x.shape)}", f"it must be (tokens, {self.hidden})")
        if self.recorder is not None:
            self.recorder.record(self.layer, topk_idx)
        return self.experts.route(topk_idx, offset=self.buffer.rank)


def _activated(inner: Tensor) -> Tensor:
    gate, up = inner.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(torch.bfloat16)


def _quantized(rows: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 of rows (groups, m, k), scales as masked products take them."""
    values, scales = quantize_activations(rows.flatten(0, 1))
    return values.view(rows.shape), scales.view(*rows.shape[:2], -1)


def _masked(
    rows: Tensor | tuple[Tensor, Tensor],
    weight: Operand,
    counts: Tensor,
    expected: int,
    into: Tensor | None = None,
) -> Tensor:
    """Rows (groups, m, k) times each group's weight (groups, n, k), transposed; rows beyond counts are left."""
    values = rows[0] if isinstance(rows, tuple) else rows
    size = (weight[0] if isinstance(weight, tuple) else weight).shape[1]
    result = into
    if result is None:
        result = torch.zeros((*values.shape[:2], size), dtype=torch.bfloat16, device=values.device)
    if isinstance(rows, tuple):
        assert isinstance(weight, tuple), "both operands of a product are FP8"
        m_grouped_fp8_gemm_nt_masked(rows, weight, result, counts, expected)
    else:
        assert isinstance(weight, Tensor), "both operands of a product are BF16"
        m_grouped_bf16_gemm_nt_masked(rows, weight, result, counts, expected)
    return result


__all__ = ["DOWN", "GATE", "UP", "ExpertParallel"]
