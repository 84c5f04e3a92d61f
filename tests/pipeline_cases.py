"""What a rank can do in the tests of pipelines, and the models it does it with."""

import torch
from torch import Tensor, nn

from luciola.plugins.dualpipe import DualPipe, DualPipeV, Linear

WIDTH, SAMPLES = 6, 2
"""Of a border; of a micro-batch."""


class Plain(nn.Module):
    """A residual stage without anything special."""

    linear: type[nn.Linear] = nn.Linear

    def __init__(self) -> None:
        super().__init__()
        self.first = self.linear(WIDTH, 2 * WIDTH)
        self.second = self.linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(nn.functional.gelu(self.first(x)))


class Split(Plain):
    """Puts its weight gradients off."""

    linear = Linear


class Hooked(Split):
    """Runs a pair by itself: backward first, to differ from the default as much as it may."""

    pairs = 0

    @classmethod
    def overlapped_forward_backward(
        cls, module0, inputs0, criterion0, labels0, module1, loss1, outputs1, output_grads1
    ):
        cls.pairs += 1
        assert isinstance(module0, cls)
        assert isinstance(module1, cls)
        if loss1 is not None:
            assert not outputs1
            loss1.backward()
            loss1.detach_()
        else:
            torch.autograd.backward(outputs1, output_grads1)
        outputs0 = [module0(*inputs0)]
        loss0 = None if criterion0 is None else criterion0(*outputs0, *labels0)
        assert criterion0 is not None or not labels0
        return outputs0, loss0


class Wide(nn.Module):
    """Stage s takes a main tensor of width s + 2, a side tensor, whole numbers and a None, and gives the like."""

    def __init__(self, stage: int, stages: int) -> None:
        super().__init__()
        self.last = stage == stages - 1
        self.main = Linear(stage + 2, stage + 3)
        self.side = nn.Linear(3, 3)

    def forward(self, main: Tensor, side: Tensor, ids: Tensor, nothing: None):
        assert nothing is None
        main = self.main(main) + ids[:, None]
        side = self.side(side) if main.shape[1] % 2 else side * 2
        return (main, side) if self.last else (main.T.contiguous().T, side, ids, None)


KINDS: dict[str, type[nn.Module]] = {"plain": Plain, "split": Split, "hooked": Hooked}


def stages(kind: str, count: int) -> list[nn.Module]:
    """All stages of a model, the same in each process."""
    torch.manual_seed(7)
    if kind == "wide":
        return [Wide(each, count).double() for each in range(count)]
    return [KINDS[kind]().double() for _ in range(count)]


def batch(kind: str, chunks: int) -> tuple[list[Tensor | None], list[Tensor]]:
    """Inputs and labels for so many micro-batches."""
    generator = torch.Generator().manual_seed(11)
    rows = chunks * SAMPLES

    def made(width: int) -> Tensor:
        return torch.randn(rows, width, generator=generator, dtype=torch.double)

    if kind == "wide":
        return [made(2), made(3), torch.arange(rows), None], [made(1)]
    return [made(WIDTH)], [made(WIDTH)]


def criterion(*values: Tensor) -> Tensor:
    *outputs, label = values
    total = sum(((output - label) ** 2).mean() for output in outputs)
    assert isinstance(total, Tensor)
    return total


def alone(kind: str, count: int, chunks: int, *, gradients: bool = True):
    """The same step in one process without any pipeline: losses, outputs, and gradients by stage."""
    model = stages(kind, count)
    inputs, labels = batch(kind, chunks)
    losses, outputs = [], []
    for index in range(chunks):
        rows = slice(index * SAMPLES, (index + 1) * SAMPLES)
        values = tuple(None if each is None else each[rows] for each in inputs)
        with torch.set_grad_enabled(gradients):
            for stage in model:
                values = stage(*values)
                values = values if isinstance(values, tuple) else (values,)
            loss = criterion(*values, *(each[rows] for each in labels))
        if gradients:
            loss.backward()
        losses.append(loss.detach())
        outputs.append([each.detach() for each in values])
    grads = [[parameter.grad for parameter in stage.parameters()] for stage in model]
    return torch.stack(losses), [torch.cat(each) for each in zip(*outputs, strict=True)], grads


def make(rank: int, size: int, *, form: str, kind: str, mapping: list[int] | None = None, **options):
    """The pipeline of one rank; `rank` is the process's."""
    place = rank if mapping is None else mapping[rank]
    count = size if form == "dualpipe" else 2 * size
    model = stages(kind, count)
    maker = DualPipe if form == "dualpipe" else DualPipeV
    return maker((model[place], model[count - 1 - place]), rank_mapping=mapping, **options)


def share(pipe: DualPipe | DualPipeV, kind: str, chunks: int) -> tuple[list, list]:
    """The inputs and labels that a rank gives."""
    inputs, labels = batch(kind, chunks)
    if isinstance(pipe, DualPipeV):
        return (inputs, labels) if pipe.is_first_rank else ([], [])
    if not (pipe.is_first_rank or pipe.is_last_rank):
        return [], []
    half = chunks * SAMPLES // 2
    own = slice(0, half) if pipe.is_first_rank else slice(half, None)
    other = slice(half, None) if pipe.is_first_rank else slice(0, half)
    label_rows = own if pipe.labels_with_inputs else other
    return [None if each is None else each[own] for each in inputs], [each[label_rows] for each in labels]


def grads_of(pipe: nn.Module) -> list[list[Tensor | None]]:
    return [[parameter.grad for parameter in module.parameters()] for module in pipe.module]


def train(
    rank: int, size: int, *, form: str, kind: str, chunks: int, steps: int = 1, reduce: bool = True, **options
):
    """Losses, outputs, gradients of both modules, most chunks alive, and how often the hook ran."""
    pipe = make(rank, size, form=form, kind=kind, **options)
    inputs, labels = share(pipe, kind, chunks)
    for _ in range(steps):
        loss, outputs = pipe.step(
            *inputs, num_chunks=chunks, criterion=criterion, labels=labels, return_outputs=True
        )
    if form == "dualpipe" and reduce:
        pipe.reduce_mirror_gradients()
    return loss, outputs, grads_of(pipe), pipe.peak_chunks, Hooked.pairs


def infer(rank: int, size: int, *, form: str, kind: str, chunks: int, **options):
    """Losses and outputs of a step without gradients, after one with them."""
    pipe = make(rank, size, form=form, kind=kind, **options)
    inputs, labels = share(pipe, kind, chunks)
    with torch.no_grad():
        loss, outputs = pipe.step(
            *inputs, num_chunks=chunks, criterion=criterion, labels=labels, return_outputs=True
        )
        silent, nothing = pipe.step(*inputs, num_chunks=chunks)
    assert silent is None
    assert nothing is None
    assert all(grad is None for grads in grads_of(pipe) for grad in grads)
    return loss, outputs
