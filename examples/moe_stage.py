"""The model of `train_moe_dualpipe.py`: a small mixture-of-experts transformer cut into pipeline stages.

A stage is one or more transformer layers (attention, then experts), with the embedding in front of the first and the
output projection behind the last. It does what a model must do to gain from DualPipe:

- its projections are the plugin's `Linear`, which puts the weight gradient off, so that a backward splits into I and W;
- `MoeStage.overlapped_forward_backward` runs the forward of one micro-batch and the backward of another segment by
  segment, in turns. Where a segment waits for other devices (expert dispatch and combine on GPUs), the other
  micro-batch's segment would run meanwhile; on a CPU it is the same work in another order, with the same bits.

Experts are kept busy without an auxiliary loss: a bias a expert, used only to choose, moves against its load
(DeepSeek-V3 report, section 2.1.2).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luciola.plugins.dualpipe import Linear

BIAS_SPEED: Final = 0.01  # of the experts' choice bias, a step


@dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """Sizes of the model."""

    vocabulary: int = 256  # bytes
    width: int = 64
    heads: int = 4
    experts: int = 4
    chosen: int = 2  # experts a token
    expert_width: int = 96
    sequence: int = 64
    stages: int = 4
    layers: int = 1
    """Of one stage."""


def linear(inputs: int, outputs: int) -> Linear:
    """A projection without bias."""
    return Linear(inputs, outputs, bias=False)


class Embedding(nn.Module):
    """Tokens and places to vectors."""

    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.places = nn.Embedding(config.sequence, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.tokens(tokens) + self.places.weight[: tokens.shape[1]]


class Attention(nn.Module):
    """Causal self-attention with a residual."""

    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.RMSNorm(config.width)
        self.project = linear(config.width, 3 * config.width)
        self.output = linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.project(self.norm(x)).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return x + self.output(mixed.transpose(1, 2).flatten(2))


class Experts(nn.Module):
    """The best few experts of each token, weighted by the router, with a residual."""

    bias: Tensor
    load: Tensor

    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        self.chosen = config.chosen
        self.norm = nn.RMSNorm(config.width)
        self.router = linear(config.width, config.experts)
        self.up = nn.ModuleList(linear(config.width, config.expert_width) for _ in range(config.experts))
        self.down = nn.ModuleList(linear(config.expert_width, config.width) for _ in range(config.experts))
        self.register_buffer("bias", torch.zeros(config.experts))
        self.register_buffer("load", torch.zeros(config.experts), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(x).flatten(0, 1)
        affinity = self.router(rows).sigmoid()
        experts = (affinity.detach() + self.bias).topk(self.chosen, dim=-1).indices
        weights = affinity.gather(1, experts)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        if torch.is_grad_enabled():
            self.load += torch.bincount(experts.flatten(), minlength=len(self.up))
        result = torch.zeros_like(rows)
        for expert, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            token, place = (experts == expert).nonzero(as_tuple=True)  # dispatch
            answer = down(F.silu(up(rows[token]))) * weights[token, place, None]
            result = result.index_add(0, token, answer)  # combine
        return x + result.view_as(x)

    @torch.no_grad()
    def rebalance(self, load: Tensor) -> None:
        """Makes experts below the mean load of a step more likely to be chosen, and the others less."""
        self.bias += BIAS_SPEED * torch.sign(load.mean() - load)
        self.load.zero_()


class Head(nn.Module):
    """Vectors to scores of the next token."""

    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.width)
        self.project = linear(config.width, config.vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.project(self.norm(x))
        return scores


@dataclass(frozen=True)
class Trace:
    """Where the graph of one micro-batch in one stage can be cut: what goes into each segment.

    It hangs on the graph's last node and holds only what is before that, so it goes when the graph goes.
    """

    boundaries: list[Tensor]
    parameters: list[list[nn.Parameter]]


class MoeStage(nn.Module):
    """One stage of the pipeline."""

    def __init__(self, config: MoeConfig, stage: int) -> None:
        super().__init__()
        first, last = stage == 0, stage == config.stages - 1
        self.segments = nn.ModuleList(
            [
                *([Embedding(config)] if first else []),
                *(kind(config) for _ in range(config.layers) for kind in (Attention, Experts)),
                *([Head(config)] if last else []),
            ]
        )

    @property
    def experts(self) -> list[Experts]:
        """Those of each layer."""
        return [each for each in self.segments if isinstance(each, Experts)]

    def loads(self) -> Tensor:
        """How often each expert of each layer was chosen since the last `rebalance`."""
        return torch.stack([each.load for each in self.experts])

    def rebalance(self, loads: Tensor) -> None:
        """As `Experts.rebalance`, for all layers."""
        for experts, load in zip(self.experts, loads, strict=True):
            experts.rebalance(load)

    def forward(self, x: Tensor) -> Tensor:
        *_, result = self.run(x)
        return result

    def run(self, x: Tensor) -> Iterator[Tensor]:
        """What each segment gives, one after the other."""
        boundaries = []
        for segment in self.segments:
            boundaries.append(x)
            x = segment(x)
            if len(boundaries) == len(self.segments):
                mark(x, Trace(boundaries, [list(each.parameters()) for each in self.segments]))
            yield x

    @staticmethod
    def overlapped_forward_backward(  # noqa: PLR0913 - DualPipe's signature
        module0: "MoeStage",
        inputs0: Sequence[Tensor],
        criterion0: Callable[..., Tensor] | None,
        labels0: Sequence[Tensor],
        module1: "MoeStage",
        loss1: Tensor | None,
        outputs1: Sequence[Tensor],
        output_grads1: Sequence[Tensor],
    ) -> tuple[list[Tensor], Tensor | None]:
        """The forward of one micro-batch (0) and the backward of another (1), segment by segment in turns."""
        del module1  # its parameters are in the trace
        backward = run_backward(outputs1[0], output_grads1[0]) if loss1 is None else run_backward(loss1, None)
        x = inputs0[0]
        for x in module0.run(inputs0[0]):  # noqa: B007 - the last one is used
            next(backward, None)
        loss0 = None
        if criterion0 is not None:
            loss0 = criterion0(x, *labels0)
            trace = trace_of(x)
            assert trace is not None, "the stage has just run"
            mark(loss0, Trace([*trace.boundaries, x], [*trace.parameters, []]))
        for _ in backward:
            pass
        if loss1 is not None:
            loss1.detach_()
        return [x], loss0


TRACE: Final = "trace"
NODES_BETWEEN_MAX: Final = (
    3  # a loss may be scaled, and an output replaced by a stand-in, before they come back
)


def mark(tensor: Tensor, trace: Trace) -> None:
    """Leaves the trace where `trace_of` finds it."""
    if tensor.grad_fn is not None:
        tensor.grad_fn.metadata[TRACE] = trace


def trace_of(tensor: Tensor) -> Trace | None:
    """The trace of the graph behind a tensor, if it has left one."""
    node = tensor.grad_fn
    for _ in range(NODES_BETWEEN_MAX):
        if node is None:
            return None
        if TRACE in node.metadata:
            found: Trace = node.metadata[TRACE]
            return found
        node = node.next_functions[0][0] if node.next_functions else None
    return None


def run_backward(root: Tensor, gradient: Tensor | None) -> Iterator[None]:
    """Goes back through one micro-batch in one stage, a segment at a time."""
    trace = trace_of(root)
    if trace is None:  # a loss that was not computed by the hook
        root.backward(gradient)
        return
    for source, parameters in zip(reversed(trace.boundaries), reversed(trace.parameters), strict=True):
        wanted = [source, *parameters] if source.requires_grad else [*parameters]
        found = torch.autograd.grad(root, wanted, gradient, allow_unused=True)
        for parameter, part in zip(reversed(parameters), reversed(found), strict=False):
            accumulate(parameter, part)
        if source.requires_grad:
            root, gradient = source, found[0]
        yield
    if trace.boundaries[0].requires_grad:
        accumulate(trace.boundaries[0], gradient)


def accumulate(tensor: Tensor, gradient: Tensor | None) -> None:
    """Adds to `.grad`, as a whole backward would."""
    if gradient is not None:
        tensor.grad = gradient if tensor.grad is None else tensor.grad.add_(gradient)


class Adam:
    """Adam with decoupled weight decay. The classes of torch.optim load torch's compiler, which takes longer than this
    whole training."""

    def __init__(self, module: nn.Module, *, rate: float, decay: float = 0.01) -> None:
        self.parameters, self.rate, self.decay, self.steps = list(module.parameters()), rate, decay, 0
        self.means = [torch.zeros_like(each) for each in self.parameters]
        self.squares = [torch.zeros_like(each) for each in self.parameters]

    @torch.no_grad()
    def step(self, *, first: float = 0.9, second: float = 0.95, least: float = 1e-8) -> None:
        """Moves the parameters and clears their gradients."""
        self.steps += 1
        scale = self.rate / (1 - first**self.steps)
        for parameter, mean, square in zip(self.parameters, self.means, self.squares, strict=True):
            if parameter.grad is None:
                continue
            mean.lerp_(parameter.grad, 1 - first)
            square.lerp_(parameter.grad.square(), 1 - second)
            parameter.mul_(1 - self.rate * self.decay)
            parameter.addcdiv_(mean, (square / (1 - second**self.steps)).sqrt_().add_(least), value=-scale)
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Everything but the settings."""
        return {"steps": self.steps, "means": self.means, "squares": self.squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.steps, self.means, self.squares = state["steps"], state["means"], state["squares"]


def build_stage(config: MoeConfig, stage: int, seed: int) -> MoeStage:
    """A stage with the weights that `seed` gives it, wherever it is built."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 1_000 + stage)
        return MoeStage(config, stage)


def next_token_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of one micro-batch."""
    return F.cross_entropy(scores.flatten(0, 1), labels.flatten())


__all__ = ["Adam", "Experts", "MoeConfig", "MoeStage", "build_stage", "next_token_loss"]
