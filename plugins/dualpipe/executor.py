"""Execute one rank's actions of a schedule: one training or inference step.

Memory: the output of a stage goes as soon as it has been sent. For the backward pass an `_Edge` keeps its place in the
graph, a tensor of the same shape with the storage of one element. So nothing that the module itself saved is touched,
and outputs may be views.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .batch import Chunk, join
from .boundary_spec import Boundary, Declared, boundary_of, decode, describe, encode, same_tensors
from .rendezvous import Rendezvous
from .schedule import (
    Action,
    Backward,
    BackwardInput,
    BackwardWeight,
    Exchange,
    Forward,
    Overlap,
    Part,
    Payload,
    Receive,
    Schedule,
    Send,
    Transfer,
    label,
)
from .transport import Message, Transport
from .wgrad_store import WeightGradStore

Criterion = Callable[..., Tensor]
Key = tuple[int, int]
"""(module, chunk)"""


@dataclass(frozen=True)
class Job:
    """What one rank is given for a step."""

    inputs: dict[int, list[Chunk]]
    """By module, for modules that are a first stage."""
    labels: dict[int, list[Chunk]]
    """By module, for modules that are a last stage."""
    criterion: Criterion | None
    gradients: bool
    """False in inference."""
    scale: float
    """Every loss is multiplied by this before its backward."""
    keep_outputs: bool
    batch_dim: int


Result = tuple[Tensor | None, Tensor | tuple[Tensor | None, ...] | None]
"""What one rank gets from a step: losses and outputs."""


class Boundaries:
    """What crosses each boundary in one step: declared by the user, or found out from the first tensors."""

    def __init__(self, declared: Declared, rendezvous: Rendezvous, *, step: int) -> None:
        self._declared = declared
        self._rendezvous = rendezvous
        self._step = step
        self._known: dict[tuple[int, int], Boundary] = {}
        self.keys: list[str] = []
        """What this rank has published."""

    def check(self, flow: int, boundary: int, tensors: Sequence[Tensor | None]) -> None:
        """Compare what a stage gave with what its boundary carries, and publish it if it is the first.

        Raises: ValueError if they differ.
        """
        found = boundary_of(tensors)

        def publish(key: str) -> Boundary:
            self._rendezvous.put(key, encode(found))
            self.keys.append(key)
            return found

        known = self._boundary(flow, boundary, publish)
        if not same_tensors(known, found):
            raise ValueError(
                f"its output is {describe(found)}, but boundary {boundary} (to stage {boundary + 1}) carries "
                f"{describe(known)} in this step"
            )
        if known != found and self._declared.boundary() is None:
            raise ValueError("its outputs need gradients for some micro-batches and none for others")

    def incoming(self, flow: int, boundary: int) -> Boundary:
        """Return what the rank above a boundary must make room for; wait until the rank below has published it."""
        what = f"the first output of stage {boundary}, flow {flow}"
        return self._boundary(flow, boundary, lambda key: decode(self._rendezvous.wait(key, what=what)))

    def _boundary(self, flow: int, boundary: int, agree: Callable[[str], Boundary]) -> Boundary:
        """What is known of a boundary: declared, or agreed on with the other rank under a key."""
        known = self._known.get((flow, boundary))
        if known is None:
            known = self._declared.boundary()
            if known is None:
                known = agree(f"boundary/{self._step}/{flow}/{boundary}")
            self._known[flow, boundary] = known
        return known

    def known(self, flow: int, boundary: int) -> Boundary:
        """Return what crosses a boundary that this rank has used before."""
        return self._known[flow, boundary]


class _Edge(torch.autograd.Function):
    """A stand-in for a tensor: its shape and place in the graph, without its data."""

    @staticmethod
    def forward(_ctx: Any, tensor: Tensor) -> Tensor:
        strides = [0] * tensor.dim()
        return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


@dataclass
class Executor:
    """The state of one rank during one step."""

    schedule: Schedule
    rank: int
    modules: Sequence[nn.Module]
    job: Job
    boundaries: Boundaries
    transport: Transport | None
    device: torch.device
    where: str = ""
    """The action that runs, in words."""
    peak_chunks: int = 0
    """Most micro-batches that waited for their backward at one time."""
    _inputs: dict[Key, Chunk] = field(default_factory=dict)
    """Inputs that other stages made; kept until their gradients are taken."""
    _edges: dict[Key, list[Tensor | None]] = field(default_factory=dict)
    _losses: dict[Key, Tensor] = field(default_factory=dict)
    """With their graphs, already scaled."""
    _grads: dict[Key, list[Tensor | None]] = field(default_factory=dict)
    """For the outputs of a module."""
    _outbox: dict[tuple[Payload, int, int, int], list[Tensor | None]] = field(default_factory=dict)
    _live: set[Key] = field(default_factory=set)
    _sent: Callable[[], None] | None = None
    """Waits for what the last exchange sent."""
    _values: dict[int, Tensor] = field(default_factory=dict)
    """Losses without graph, by chunk."""
    _outputs: dict[int, Chunk] = field(default_factory=dict)

    def run(self) -> Result:
        """Run all actions of this rank, in order."""
        WeightGradStore.clear()
        try:
            for action in self.schedule.actions[self.rank]:
                self._do(action)
            self._await_sent()
        finally:
            WeightGradStore.enabled = False
            WeightGradStore.clear()
        self.where = ""
        return self._result()

    def _do(self, action: Action) -> None:
        self.where = in_words(action)
        match action:
            case Exchange(group):
                self._exchange(group)
            case Forward():
                self._forward(action)
            case Backward():
                self._backward(action)
            case BackwardInput():
                WeightGradStore.enabled = True
                self._backward(action)
                WeightGradStore.enabled = False
                WeightGradStore.flush()
            case BackwardWeight():
                WeightGradStore.pop()
            case Overlap(forward, backward):
                self._overlap(forward, backward)

    # ---- forward

    def _forward(self, part: Forward) -> None:
        module = self.modules[part.module]
        outputs = as_list(module(*self._inputs_of(part)), module)
        loss = None
        if self._is_last(part) and self.job.criterion is not None:
            loss = self.job.criterion(*outputs, *self._labels_of(part))
        self._after_forward(part, outputs, loss)

    def _inputs_of(self, part: Forward) -> Chunk:
        if part.stage == 0:
            return self.job.inputs[part.module][part.chunk]
        inputs = self._inputs[part.module, part.chunk]
        if not self.job.gradients:
            del self._inputs[part.module, part.chunk]
        return inputs

    def _labels_of(self, part: Forward) -> Chunk:
        labels = self.job.labels[part.module]
        return labels[part.chunk] if labels else ()

    def _after_forward(self, part: Forward, outputs: list[Tensor | None], loss: Tensor | None) -> None:
        if self.job.gradients:
            self._live.add((part.module, part.chunk))
            self.peak_chunks = max(self.peak_chunks, len(self._live))
        if self._is_last(part):
            self._finish_chunk(part, outputs, loss)
            return
        if self.job.gradients:
            self._edges[part.module, part.chunk] = [
                _Edge.apply(each) if each is not None and each.requires_grad else None for each in outputs
            ]
        above = self._local(part.flow, part.stage + 1)
        if above is not None:
            self._inputs[above, part.chunk] = tuple(map(self._leaf, outputs))
        else:
            self.boundaries.check(part.flow, part.stage, outputs)
            key = (Payload.ACTIVATION, part.flow, part.stage, part.chunk)
            self._outbox[key] = [None if each is None else each.detach().contiguous() for each in outputs]

    def _finish_chunk(self, part: Forward, outputs: list[Tensor | None], loss: Tensor | None) -> None:
        if self.job.keep_outputs:
            self._outputs[part.chunk] = tuple(None if each is None else each.detach() for each in outputs)
        if loss is None:
            return
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"the criterion must return a tensor with one element, not {shape}")
        self._values[part.chunk] = loss.detach().clone()
        if self.job.gradients:
            self._losses[part.module, part.chunk] = loss if self.job.scale == 1 else loss * self.job.scale

    def _leaf(self, tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return tensor.detach().requires_grad_(tensor.requires_grad and self.job.gradients)

    # ---- backward

    def _backward(self, part: Backward | BackwardInput) -> None:
        loss, outputs, grads = self._backward_arguments(part)
        if loss is not None:
            loss.backward()  # type: ignore[no-untyped-call]
        elif outputs:
            torch.autograd.backward(outputs, grads)
        self._after_backward(part)

    def _backward_arguments(
        self, part: Backward | BackwardInput
    ) -> tuple[Tensor | None, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The loss, or outputs and their gradients; in tuples, as torch's engine takes them from a hook."""
        key = (part.module, part.chunk)
        if self._is_last(part):
            return self._losses.pop(key), (), ()
        pairs = [
            (edge, grad)
            for edge, grad in zip(self._edges.pop(key), self._grads.pop(key), strict=True)
            if edge is not None and grad is not None
        ]
        return None, tuple(edge for edge, _ in pairs), tuple(grad for _, grad in pairs)

    def _after_backward(self, part: Backward | BackwardInput) -> None:
        self._live.discard((part.module, part.chunk))
        if part.stage == 0:
            return
        inputs = self._inputs.pop((part.module, part.chunk))
        grads = [None if each is None else each.grad for each in inputs]
        below = self._local(part.flow, part.stage - 1)
        if below is not None:
            self._grads[below, part.chunk] = grads
            return
        self._outbox[Payload.GRADIENT, part.flow, part.stage - 1, part.chunk] = [
            torch.zeros_like(each) if grad is None and each is not None and each.requires_grad else grad
            for each, grad in zip(inputs, grads, strict=True)
        ]

    def _overlap(self, forward: Forward, backward: Backward) -> None:
        hook = overlap_hook(self.modules)
        if hook is None:
            self._forward(forward)
            self._backward(backward)
            return
        last = self._is_last(forward)
        loss1, outputs1, grads1 = self._backward_arguments(backward)
        outputs0, loss0 = hook(
            self.modules[forward.module],
            list(self._inputs_of(forward)),
            self.job.criterion if last else None,
            list(self._labels_of(forward)) if last else [],
            self.modules[backward.module],
            loss1,
            outputs1,
            grads1,
        )
        self._after_forward(forward, as_list(outputs0, self.modules[forward.module]), loss0)
        self._after_backward(backward)

    # ---- transfers

    def _exchange(self, group: Sequence[Transfer]) -> None:
        """Start the transfers of an exchange and wait for what is received.

        Where messages must start together, all are waited for: on a GPU only its stream waits. Where tags match them,
        what is sent may still be on its way until the next exchange, so a rank does not stand still until its peer
        comes to take it.
        """
        assert self.transport is not None, "a schedule of one rank has no transfers"
        self._await_sent()
        if self.transport.together:
            wait, buffers = self._start(group)
            wait()
        else:
            # Sends first: nothing sent here may wait for the spec of what is received.
            self._sent, _ = self._start([each for each in group if isinstance(each, Send)])
            wait, buffers = self._start([each for each in group if isinstance(each, Receive)])
            wait()
        for transfer, tensors in buffers:
            if isinstance(transfer, Receive):
                self._deliver(transfer, tensors)

    def _start(
        self, group: Sequence[Transfer]
    ) -> tuple[Callable[[], None], list[tuple[Transfer, list[Tensor | None]]]]:
        assert self.transport is not None, "as above"
        buffers = [(transfer, self._tensors_of(transfer)) for transfer in group]
        messages = [message for transfer, tensors in buffers for message in _messages(transfer, tensors)]
        return self.transport.start(messages), buffers

    def _await_sent(self) -> None:
        """Wait until what was sent has arrived and its memory is free."""
        if self._sent is not None:
            self._sent()
            self._sent = None

    def _tensors_of(self, transfer: Transfer) -> list[Tensor | None]:
        if isinstance(transfer, Receive):
            return self._room_for(transfer)
        key = (transfer.payload, transfer.flow, transfer.boundary, transfer.chunk)
        tensors = self._outbox.pop(key)
        if transfer.payload is Payload.ACTIVATION:
            return tensors
        boundary = self.boundaries.known(transfer.flow, transfer.boundary)
        return [
            each.contiguous() if each is not None and spec is not None and spec.gradient else None
            for each, spec in zip(tensors, boundary, strict=True)
        ]

    def _room_for(self, transfer: Receive) -> list[Tensor | None]:
        boundary = self.boundaries.incoming(transfer.flow, transfer.boundary)
        gradient = transfer.payload is Payload.GRADIENT
        return [
            None if spec is None or (gradient and not spec.gradient) else spec.empty(self.device)
            for spec in boundary
        ]

    def _deliver(self, transfer: Receive, tensors: list[Tensor | None]) -> None:
        if transfer.payload is Payload.GRADIENT:
            module = self._local(transfer.flow, transfer.boundary)
            assert module is not None, "gradients come to the rank that made the activation"
            self._grads[module, transfer.chunk] = tensors
            return
        module = self._local(transfer.flow, transfer.boundary + 1)
        assert module is not None, "activations come to the rank that needs them"
        boundary = self.boundaries.known(transfer.flow, transfer.boundary)
        for tensor, spec in zip(tensors, boundary, strict=True):
            if tensor is not None and spec is not None:
                tensor.requires_grad_(spec.gradient and self.job.gradients)
        self._inputs[module, transfer.chunk] = tuple(tensors)

    # ---- small things

    def _is_last(self, part: Part) -> bool:
        return part.stage == self.schedule.stages - 1

    def _local(self, flow: int, stage: int) -> int | None:
        """The module of this rank that is this stage, if there is one."""
        for module, place in enumerate(self.schedule.places[self.rank]):
            if (place.flow, place.stage) == (flow, stage):
                return module
        return None

    def _result(self) -> Result:
        losses = [self._values[each].reshape(()) for each in sorted(self._values)]
        loss = torch.stack(losses) if losses else None
        outputs = None
        if self._outputs:
            chunks = [self._outputs[each] for each in sorted(self._outputs)]
            outputs = join(chunks, dim=self.job.batch_dim)
        return loss, outputs


def overlap_hook(modules: Sequence[nn.Module]) -> Callable[..., Any] | None:
    """The function of a pair of modules of one type that runs a forward and a backward together, if it has one."""
    kinds = {type(module) for module in modules}
    if len(kinds) != 1:
        return None
    hook: Callable[..., Any] | None = getattr(kinds.pop(), "overlapped_forward_backward", None)
    return hook


def as_list(outputs: object, module: nn.Module) -> list[Tensor | None]:
    """Return what a module returned, as a list.

    Raises: TypeError if it is neither a tensor nor a list or tuple of tensors and None.
    """
    listed: Iterable[Any] = outputs if isinstance(outputs, list | tuple) else [outputs]
    result = list(listed)
    for each in result:
        if each is not None and not isinstance(each, Tensor):
            raise TypeError(
                f"{type(module).__name__} must return a tensor or a list or tuple of tensors, not {type(each).__name__}"
            )
    return result


def _messages(transfer: Transfer, tensors: Sequence[Tensor | None]) -> list[Message]:
    what = in_words(transfer)
    return [
        Message(isinstance(transfer, Send), transfer.peer, message_tag(transfer, index), tensor, what)
        for index, tensor in enumerate(tensors)
        if tensor is not None
    ]


def message_tag(transfer: Transfer, index: int) -> int:
    """Below 2**30. Two messages with one tag are so far apart that they never wait together."""
    kind = 1 if transfer.payload is Payload.GRADIENT else 0
    fields = ((kind, 2), (transfer.flow, 2), (transfer.boundary, 1024), (transfer.chunk, 4096), (index, 64))
    tag = 0
    for value, size in fields:
        tag = tag * size + value % size
    return tag


def in_words(action: Action | Transfer) -> str:
    """An action for an error message."""
    match action:
        case Exchange(group):
            return "exchange of " + " and ".join(dict.fromkeys(each.payload.value + "s" for each in group))
        case Overlap(forward, backward):
            return f"{in_words(forward)}, with {in_words(backward)}"
        case Send() | Receive():
            verb, word = ("send", "to") if isinstance(action, Send) else ("receive", "from")
            chunk = f"micro-batch {action.chunk} of flow {action.flow}"
            return f"{verb} {action.payload} of {chunk} {word} pipeline rank {action.peer}"
        case _:
            name = type(action).__name__
            return f"{name} of stage {action.stage}, micro-batch {action.chunk} of flow {action.flow} ({label(action)})"


__all__ = ["Boundaries", "Executor", "Job", "Result", "as_list", "in_words", "message_tag", "overlap_hook"]
