"""What a rank can do in the tests of pipelines, and the models it does it with."""

import os
import signal
import time
import weakref

import torch
import torch.distributed as dist
from torch import Tensor, nn

from luciola.plugins.dualpipe import (
    DualPipe,
    DualPipeV,
    Linear,
    set_p2p_tensor_dtype,
    set_p2p_tensor_shapes,
)
from luciola.plugins.dualpipe.rendezvous import Rendezvous
from luciola.plugins.dualpipe.transport import MeshTransport, Message

STORE: list[dist.Store] = []
"""That of this case, without any prefix."""

WIDTH, SAMPLES = 6, 2
"""Of a boundary; of a micro-batch."""


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
            torch.autograd.Variable._execution_engine.run_backward(  # as hooks for the original do
                outputs1,
                output_grads1,
                keep_graph=False,
                create_graph=False,
                inputs=(),
                allow_unreachable=True,
                accumulate_grad=True,
            )
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


class GroupDualPipe(DualPipe):
    """Sends in the process group, in batches and without tags, as on a GPU."""

    in_group = True


class GroupDualPipeV(DualPipeV):
    """As GroupDualPipe."""

    in_group = True


MAKERS = {
    ("dualpipe", False): DualPipe,
    ("dualpipev", False): DualPipeV,
    ("dualpipe", True): GroupDualPipe,
    ("dualpipev", True): GroupDualPipeV,
}


def make(
    rank: int,
    size: int,
    *,
    form: str,
    kind: str,
    mapping: list[int] | None = None,
    group: bool = False,
    **options,
):
    """The pipeline of one rank; `rank` is the process's."""
    place = rank if mapping is None else mapping[rank]
    count = size if form == "dualpipe" else 2 * size
    model = stages(kind, count)
    maker = MAKERS[form, group]
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
    return [None if each is None else each[own] for each in inputs], [each[other] for each in labels]


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


class Faulty(nn.Module):
    """Does something bad at one call of its forward."""

    def __init__(self, inner: nn.Module, fault: str, call: int) -> None:
        super().__init__()
        self.inner = inner
        self.fault = fault
        self.call = call
        self.calls = 0

    def forward(self, x: Tensor) -> object:
        self.calls += 1
        y = self.inner(x)
        return y if self.calls != self.call else getattr(self, self.fault)(y)

    def killed(self, _: Tensor) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def stopped(self, _: Tensor) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def raises(self, _: Tensor) -> None:
        raise ArithmeticError("no luck in this stage")

    def exits(self, _: Tensor) -> None:
        raise SystemExit(3)

    def wrong_shape(self, y: Tensor) -> Tensor:
        return y[:, :-1]

    def wrong_dtype(self, y: Tensor) -> Tensor:
        return y.float()

    def wrong_count(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return y, y

    def no_tensor(self, _: Tensor) -> str:
        return "nothing"


def fault(
    rank: int, size: int, *, form: str, kind: str, chunks: int, bad: int, fault: str, call: int, **options
):
    """A step in which the first module of rank `bad` does something bad. What this rank learned, and a second step.

    The second step runs without fault where all processes live: its losses, gradients set to zero before it.
    """
    pipe = make(rank, size, form=form, kind=kind, **options)
    inputs, labels = share(pipe, kind, chunks)
    whole = pipe.module[0]
    if rank == bad:
        pipe.module[0] = Faulty(whole, fault, call)
    learned = attempt(lambda: pipe.step(*inputs, num_chunks=chunks, criterion=criterion, labels=labels))
    if fault == "stopped" and rank == (bad + 1) % size:
        os.kill(int(STORE[0].get(f"pid/{bad}")), signal.SIGKILL)
    if fault in ("killed", "stopped", "exits"):
        return learned, None
    pipe.module[0] = whole
    pipe.zero_grad()
    loss, _ = pipe.step(*inputs, num_chunks=chunks, criterion=criterion, labels=labels)
    return learned, loss


def attempt(call) -> tuple[str, str, str]:
    """Type, text and cause of what a call raises."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return type(error).__name__, str(error), repr(error.__cause__)
    return "", "", ""


def disagree(rank: int, size: int, *, form: str, chunks: int, change: str):
    """A step in which rank 1 is given something else than the others."""
    odd = rank == 1
    options = {"timeout_s": 3.0} if change == "absent" else {}
    if change == "scale" and odd:
        options["gradient_scale"] = "mean"
    pipe = make(rank, size, form=form, kind="split", **options)
    inputs, labels = share(pipe, "split", chunks)
    if change == "shapes":
        set_p2p_tensor_shapes([(SAMPLES, WIDTH + odd)])
        set_p2p_tensor_dtype(torch.double)
    if change == "absent" and odd:
        return "", "", ""
    asked = chunks + 2 if change == "chunks" and odd else chunks

    def run():
        if change == "inference" and odd:
            with torch.no_grad():
                return pipe.step(*inputs, num_chunks=asked)
        return pipe.step(*inputs, num_chunks=asked, criterion=criterion, labels=labels)

    return attempt(run)


def argument(rank: int, size: int, *, form: str, change: str):
    """A step in which the last rank (the first in a V) gives a bad argument."""
    pipe = make(rank, size, form=form, kind="split")
    inputs, labels = share(pipe, "split", 8)
    given = {"num_chunks": 8, "criterion": criterion, "labels": labels}
    if rank == (size - 1 if form == "dualpipe" else 0):
        if change == "no inputs":
            inputs = []
        elif change == "uneven":
            inputs = [inputs[0][1:]]
        elif change == "no criterion":
            given["criterion"] = None
        elif change == "labels":
            given["labels"] = labels[0]
        elif change == "not a tensor":
            inputs = [3]
        elif change == "vector loss":
            given["criterion"] = lambda output, label: output - label
        elif change == "criterion":
            given["criterion"] = lambda output, label: output.no_such_thing
    return attempt(lambda: pipe.step(*inputs, **given))


def options(
    rank: int,
    size: int,
    *,
    form: str,
    kind: str,
    chunks: int,
    declared: bool = False,
    reduce: bool = False,
    **given,
):
    """As train, twice, with shapes that the user declares."""
    if declared:
        set_p2p_tensor_shapes([(SAMPLES, WIDTH)])
        set_p2p_tensor_dtype(torch.double)
    return train(rank, size, form=form, kind=kind, chunks=chunks, steps=2, reduce=reduce, **given)


def tied(rank: int, size: int, *, form: str, chunks: int):
    """First and last stage share a parameter on the ranks that hold both."""
    pipe = make(rank, size, form=form, kind="plain")
    if pipe.is_first_rank or (pipe.is_last_rank and form == "dualpipe"):
        first, last = pipe.module if pipe.is_first_rank else reversed(pipe.module)
        last.first.weight = first.first.weight
    inputs, labels = share(pipe, "plain", chunks)
    pipe.step(*inputs, num_chunks=chunks, criterion=criterion, labels=labels)
    if form == "dualpipe":
        pipe.reduce_mirror_gradients()
    return grads_of(pipe)


def unlike(rank: int, size: int):
    """The copies of a stage are of different types."""
    place = nn.Sequential(nn.Linear(WIDTH, WIDTH)).double() if rank == 0 else Split().double()
    other = Split().double()
    pipe = DualPipe((place, other))
    inputs, labels = share(pipe, "split", 4)
    pipe.step(*inputs, num_chunks=4, criterion=criterion, labels=labels)
    return attempt(pipe.reduce_mirror_gradients)


class Owned(torch.autograd.Function):
    """A copy in memory that we can watch: numpy's array lives as long as the tensor's storage."""

    @staticmethod
    def forward(_ctx, x: Tensor, seen: list[weakref.ref]) -> Tensor:
        array = x.numpy().copy()
        seen.append(weakref.ref(array))
        return torch.from_numpy(array)

    @staticmethod
    def backward(_ctx, grad: Tensor):
        return grad, None


class Viewing(nn.Module):
    """Its output is a view, and it remembers the memory of each."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1, WIDTH))
        self.seen: list[weakref.ref] = []

    def forward(self, x: Tensor) -> Tensor:
        return Owned.apply((x * self.scale).exp().flatten(), self.seen).view(SAMPLES, WIDTH)


def viewing_batch(chunks: int) -> Tensor:
    return torch.linspace(-1, 1, chunks * SAMPLES * WIDTH).double().reshape(-1, WIDTH)


def memory(rank: int, size: int, *, chunks: int):
    """How many outputs of the first module were alive, at most, when it was called again; gradients."""
    pipe = DualPipeV((Viewing().double(), Viewing().double()))
    module = pipe.module[0]
    alive: list[int] = []
    module.register_forward_pre_hook(lambda *_: alive.append(sum(each() is not None for each in module.seen)))
    inputs = [viewing_batch(chunks)] if rank == 0 else []
    pipe.step(*inputs, num_chunks=chunks, criterion=lambda y: y.sum())
    return max(alive), [each.scale.grad for each in pipe.module]


def groups(rank: int, size: int, *, chunks: int):
    """Two pipelines of half the processes each, at the same time, the ranks of the second turned round."""
    halves = [dist.new_group(list(range(size // 2))), dist.new_group(list(range(size // 2, size)))]
    second = rank >= size // 2
    mapping = list(reversed(range(size // 2))) if second else None
    place = rank % (size // 2)
    pipe = make(
        place, size // 2, form="dualpipev", kind="split", mapping=mapping, process_group=halves[int(second)]
    )
    inputs, labels = share(pipe, "split", chunks)
    loss, _ = pipe.step(*inputs, num_chunks=chunks, criterion=criterion, labels=labels)
    return pipe.rank, loss, grads_of(pipe)


def keys(rank: int, size: int):
    """How many keys the store has after 4 steps and after 12."""
    pipe = make(rank, size, form="dualpipe", kind="plain")
    inputs, labels = share(pipe, "plain", 4)
    counts = []
    for step in range(1, 13):
        pipe.step(*inputs, num_chunks=4, criterion=criterion, labels=labels, return_outputs=True)
        pipe.reduce_mirror_gradients()
        if step in (4, 12):
            dist.barrier()
            counts.append(STORE[0].num_keys())
            dist.barrier()
    return counts


def slow_watchdog(rank: int, size: int, *, seconds: float):
    """A step in which every rank computes for longer than its watchdog's periods."""
    pipe = make(rank, size, form="dualpipev", kind="plain")
    pipe.module[0].register_forward_pre_hook(lambda *_: time.sleep(seconds))
    inputs, labels = share(pipe, "plain", 4)
    return pipe.step(*inputs, num_chunks=4, criterion=criterion, labels=labels)[0]


def crossing(rank: int, size: int):
    """Two messages of one shape, received in the other order than sent."""
    transport = MeshTransport(Rendezvous(STORE[0], rank=rank, timeout_s=20.0), ranks=size)
    tensors = [torch.full((3,), float(index + 1 if rank == 0 else 0)) for index in range(2)]
    messages = [Message(rank == 0, 1 - rank, tag, tensors[tag], "test") for tag in range(2)]
    waits = [transport.start([each]) for each in (messages if rank == 0 else reversed(messages))]
    for wait in waits:
        wait()
    dist.barrier()
    return [each.tolist() for each in tensors]
