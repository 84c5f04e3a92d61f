"""Gluon kernels of Hopper run on the CPU, from their own source: for their logic, not their layouts or their speed.

    with launching_with(launch_simulated(seed=1)), using_layer("hopper"):
        flash_mla_with_kvcache(...)

Every partition of `warp_specialize` is a thread; one runs at a time, and which one continues is drawn by the seed
wherever they could influence each other. What is asynchronous on the chip may happen at any later moment:

    TMA load     its place is poisoned at once and filled at a moment that is drawn; then its barrier gets the bytes
    TMA store    its place is read at a moment that is drawn
    cp.async     the same, from an address for each number; its barrier gets 128 arrivals then
    wgmma        computed when it is waited for; its operands in shared memory must not have changed meanwhile

Errors: a barrier that gets too many arrivals; waiting that no partition can end; what threads wrote, read by a
multiplication or a TMA store without `fence_async_shared`; an address beyond a tensor; an asynchronous result that is
used; a descriptor replaced while loads by the old one are in flight; an end before stores have read what they store.
What is not simulated: layouts, registers, the order of memory operations inside a partition.
"""

import random
import threading
from types import FunctionType, ModuleType, SimpleNamespace

import torch
from triton.experimental.gluon import language as real
from triton.experimental.gluon._runtime import GluonJITFunction
from triton.experimental.gluon.language.nvidia.hopper import mbarrier as real_mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.runtime.jit import JITFunction

LIMIT_S = 100
COPYING = 128  # threads of a warpgroup, each of which arrives when its copies have
COPIED = -14  # bits of three partitions


class Wrong(AssertionError):
    """The kernel does what is not allowed."""


class Turns:
    """Who runs. A thread waits for its turn with a condition; events happen in between."""

    def __init__(self, seed, count):
        self.random = random.Random(seed)
        self.waiting = [lambda: True] * count  # conditions of those that have not ended
        self.events = []
        self.turn, self.error = None, None
        self.changed = threading.Condition()

    def begin(self, me):
        with self.changed:
            self._wait(me)

    def next(self, me, condition=lambda: True):
        with self.changed:
            self.waiting[me] = condition
            self._choose()
            self._wait(me)

    def end(self, me, error):
        with self.changed:
            self.waiting[me] = None
            self.error = self.error or error
            self._choose()

    def _wait(self, me):
        done = self.changed.wait_for(lambda: self.turn == me or self.error, timeout=LIMIT_S)
        if self.error:
            raise self.error
        assert done, "turns continue"

    def _choose(self):
        while not self.error:
            ready = [each for each, condition in enumerate(self.waiting) if condition and condition()]
            if not ready and not self.events:
                if any(self.waiting):
                    self.error = Wrong("all partitions wait for one another")
                self.turn = None
                break
            chosen = self.random.randrange(len(ready) + len(self.events))
            if chosen < len(ready):
                self.turn = ready[chosen]
                break
            self.events.pop(chosen - len(ready))()
        self.changed.notify_all()


class Program:
    """One program of the grid: its place, its turns, and which thread is which partition."""

    def __init__(self, place, seed):
        self.place, self.seed = place, seed
        self.turns, self.local = None, threading.local()
        self.leaving = {}  # TMA stores of each partition that have not read their place

    @property
    def partition(self):
        return getattr(self.local, "partition", -1)

    def yield_(self, condition=lambda: True):
        if self.turns is not None:
            self.turns.next(self.partition, condition)

    def specialize(self, functions, _warps, _registers):
        self.turns = Turns(self.seed, len(functions))
        threads = [
            threading.Thread(target=self._partition, args=(number, *each), daemon=True)
            for number, each in enumerate(functions)
        ]
        for thread in threads:
            thread.start()
        with self.turns.changed:
            self.turns._choose()
        for thread in threads:
            thread.join(LIMIT_S)
        if self.turns.error:
            raise self.turns.error
        assert not self.turns.events, "every load and store was waited for"

    def _check_stores(self, partition):
        if self.leaving.get(partition):
            raise Wrong("a partition ends before its stores have read what they store")

    def _partition(self, number, function, arguments):
        self.local.partition, error = number, None
        try:
            self.turns.begin(number)
            function(*arguments)
            self._check_stores(number)
        except Exception as caught:  # noqa: BLE001 (raised again by `specialize`)
            error = caught
        self.turns.end(number, error)


class Barrier:
    """Phases end when all arrivals and all bytes are there."""

    def __init__(self):
        self.count, self.arrivals, self.bytes, self.phase = 0, 0, 0, 0

    def index(self, _zero):
        return self

    def arrive(self, count):
        self.arrivals += count
        self.settle()

    def settle(self):
        if self.arrivals > self.count:
            raise Wrong(f"{self.arrivals} arrivals at a barrier of {self.count}")
        if self.count and self.arrivals == self.count and self.bytes == 0:
            self.arrivals, self.phase = 0, self.phase + 1

    def waits(self, parity):
        return self.phase & 1 == int(parity)


class Shared:
    """A place in shared memory; `written` says by which partition (+ 2) since its last fence.

    What cp.async brought is negative: a bit of it is gone for each partition that has fenced since.
    """

    def __init__(self, program, values, written):
        self.program, self.values, self.written = program, values, written

    def _view(self, change):
        return Shared(self.program, change(self.values), change(self.written))

    def index(self, place):
        assert 0 <= int(place) < self.values.shape[0], "a slot that is there"
        return self._view(lambda each: each[int(place)])

    def reshape(self, shape):
        return self._view(lambda each: each.view(tuple(int(size) for size in shape)))

    def permute(self, order):
        return self._view(lambda each: each.permute(order))

    def slice(self, start, length, dim=0):
        return self._view(lambda each: each.narrow(dim, int(start), int(length)))

    def store(self, value):
        self.program.yield_()
        assert value.shape == self.values.shape, f"{tuple(value.shape)} into {tuple(self.values.shape)}"
        assert value.dtype == self.values.dtype, f"{value.dtype} into {self.values.dtype}"
        self.values.copy_(value)
        self.written.fill_(self.program.partition + 2)

    def load(self, _layout):
        self.program.yield_()
        return self.values.clone()

    @property
    def shape(self):
        return self.values.shape

    @property
    def dtype(self):
        return self.values.dtype


class Pending:
    """The result of an asynchronous multiplication."""

    def __init__(self, before, operands, use_acc):
        self.before, self.use_acc = before, use_acc
        self.operands = operands
        self.then = [each.values.clone() if isinstance(each, Shared) else each for each in operands]

    def settle_before(self):
        """Those before it have ended."""
        if isinstance(self.before, Pending):
            self.before = self.before.result()

    def result(self):
        before = self.before.result() if isinstance(self.before, Pending) else self.before
        for each, then in zip(self.operands, self.then, strict=True):
            now = each.values if isinstance(each, Shared) else each
            if not torch.equal(now.float().nan_to_num(7.5), then.float().nan_to_num(7.5)):
                raise Wrong("an operand changed while it was multiplied")
        product = self.then[0].float() @ self.then[1].float()
        return product + before if self.use_acc else product


class Pointer:
    """Addresses in a tensor's storage, from its first element on, of numbers of a type."""

    def __init__(self, tensor, offset=0, dtype=None):
        self.tensor, self.offset = tensor, offset
        self.dtype = SimpleNamespace(element_ty=dtype or tensor.dtype)

    def __add__(self, offset):
        return Pointer(self.tensor, self.offset + offset, self.dtype.element_ty)

    def to(self, other):
        """The same address, of numbers of another type."""
        assert isinstance(self.offset, int), (
            "a cast before places are added: the compiler sees what is aligned"
        )
        at = self.offset * self.dtype.element_ty.itemsize
        assert at % other.of.itemsize == 0, "an address that is aligned"
        return Pointer(self.tensor, at // other.of.itemsize, other.of)

    def places(self, mask):
        """Flat storage, and the checked numbers in it."""
        dtype, start = self.dtype.element_ty, self.tensor.storage_offset() * self.tensor.element_size()
        raw = torch.empty(0, dtype=torch.uint8, device=self.tensor.device).set_(self.tensor.untyped_storage())
        size = (raw.numel() - start) // dtype.itemsize
        assert (raw.data_ptr() + start) % dtype.itemsize == 0, "an address that is aligned"
        flat = raw[start : start + size * dtype.itemsize].view(dtype)
        places = torch.as_tensor(self.offset).long()
        mask = torch.ones_like(places, dtype=torch.bool) if mask is None else torch.as_tensor(mask)
        mask = mask.expand(torch.broadcast_shapes(mask.shape, places.shape))
        places = places.expand(mask.shape)
        if ((places[mask] < 0) | (places[mask] >= size)).any():
            raise Wrong("an address beyond its tensor")
        return flat, torch.where(mask, places, 0), mask


class Tile:
    """A tensor descriptor: what is outside of the tensor is read as zeros."""

    def __init__(self, base, sizes, strides, shape, layout, offset=0):
        self.base, self.dtype, self.layout = base, base.dtype, layout
        self.sizes, self.strides = [int(each) for each in sizes], [int(each) for each in strides]
        self.offset = base.storage_offset() + int(offset)
        size = torch.Size(shape).numel() * base.element_size()
        self.block_type = SimpleNamespace(shape=list(shape), nbytes=size)
        if self.offset * base.element_size() % 16 or self.strides[0] * base.element_size() % 16:
            raise Wrong("a descriptor begins, or its rows do, between multiples of 16 bytes")

    def _common(self, corner):
        """What a block and the tensor have in common: in the tensor, and its place in the block."""
        begins = [max(0, each) for each in corner]
        ends = [
            max(begin, min(limit, each + size))
            for begin, each, size, limit in zip(
                begins, corner, self.block_type.shape, self.sizes, strict=True
            )
        ]
        whole = torch.as_strided(self.base, tuple(self.sizes), tuple(self.strides), self.offset)
        there = whole[tuple(slice(begin, end) for begin, end in zip(begins, ends, strict=True))]
        return there, tuple(
            slice(begin - each, begin - each + size)
            for begin, each, size in zip(begins, corner, there.shape, strict=True)
        )

    def read(self, corner):
        values = torch.zeros(self.block_type.shape, dtype=self.dtype)
        there, place = self._common(corner)
        if there.numel():
            values[place] = there.cpu()
        return values

    def write(self, corner, values):
        there, place = self._common(corner)
        if there.numel():
            there.copy_(values[place])


def no_layout(*_given, **_named):
    """Layouts are not simulated."""


def tensors(function):
    """Numbers among the arguments become tensors."""
    return lambda *given, **named: function(*(torch.as_tensor(each) for each in given), **named)


def language(program):  # noqa: C901, PLR0915 (a list of small functions)
    """What stands for `gl` and the functions of Hopper."""

    def load(pointer, mask=None, other=None):
        flat, places, mask = pointer.places(mask)
        if flat.numel() == 0:
            return torch.full(places.shape, other, dtype=flat.dtype)
        return torch.where(mask, flat[places], torch.as_tensor(other or 0, dtype=flat.dtype))

    def store(pointer, value, mask=None):
        flat, places, mask = pointer.places(mask)
        value = torch.as_tensor(value)
        assert value.dtype == flat.dtype, f"{value.dtype} into a tensor of {flat.dtype}"
        flat[places[mask]] = value.expand(mask.shape)[mask]

    def allocate(dtype, shape, layout):
        shape = [int(each) for each in shape]
        if isinstance(layout, real_mbarrier.MBarrierLayout):
            barriers = [Barrier() for _ in range(shape[0])]
            return (
                SimpleNamespace(index=lambda place: barriers[int(place)]) if len(shape) > 1 else barriers[0]
            )
        values = torch.full(shape, float("nan")).to(dtype)
        return Shared(program, values, torch.zeros(shape, dtype=torch.int8))

    def tma_load(tile, corner, barrier, place):
        program.yield_()
        assert list(place.shape) == tile.block_type.shape, "the place has the tile's shape"
        in_flight.append(tile)
        corner = [int(each) for each in corner]
        place.values.copy_(torch.full(place.shape, float("nan")).to(place.dtype))

        def arrive():
            in_flight.remove(tile)
            place.values.copy_(tile.read(corner))
            place.written.zero_()
            barrier.bytes -= tile.block_type.nbytes
            barrier.settle()

        program.turns.events.append(arrive)

    def tma_store(tile, corner, place):
        program.yield_()
        assert list(place.shape) == tile.block_type.shape, "the place has the tile's shape"
        if place.written.any():
            raise Wrong("what threads wrote is stored, and no fence_async_shared came after that")
        corner, mine = [int(each) for each in corner], program.partition
        program.leaving[mine] = program.leaving.get(mine, 0) + 1

        def leave():
            tile.write(corner, place.values)
            program.leaving[mine] -= 1

        program.turns.events.append(leave)

    def store_wait(pendings):
        program.yield_(lambda mine=program.partition: program.leaving.get(mine, 0) <= pendings)

    def make_descriptor(base, sizes, strides, shape, layout):
        program.yield_()
        if any(each in made for each in in_flight):
            raise Wrong("a descriptor is replaced while loads by the old one are in flight")
        made.append(Tile(base.tensor, sizes, strides, shape, layout, offset=base.offset))
        return made[-1]

    def expect(barrier, size):
        program.yield_()
        barrier.bytes += int(size)
        barrier.arrive(1)

    def arrive(barrier, *, count=1, pred=True):
        program.yield_()
        if pred:
            barrier.arrive(count)

    def unseen(written):
        """What cp.async brought and this partition has not fenced since."""
        return (written < 0) & ((-written & (2 << program.partition)) != 0)

    def fence():
        for written in fenced:
            written[written == program.partition + 2] = 0
            written[unseen(written)] += 2 << program.partition

    def copy(place, pointer, mask=None):
        program.yield_()
        flat, places, mask = pointer.places(mask)
        assert places.shape == place.shape, "an address for each number of the place"
        assert place.dtype == flat.dtype, "copies change no types"
        if (places[:, ::8] * flat.element_size() % 16)[mask[:, ::8]].any():
            raise Wrong("a copy begins between multiples of 16 bytes")
        place.values.copy_(torch.full(place.shape, float("nan")).to(place.dtype))
        me = object()
        copying.setdefault(program.partition, set()).add(me)

        def land(mine=copying[program.partition]):
            there = flat[places] if flat.numel() else torch.zeros(places.shape, dtype=flat.dtype)
            place.values.copy_(torch.where(mask, there, torch.zeros((), dtype=flat.dtype)))
            place.written.fill_(COPIED)
            mine.remove(me)
            for waiting in arriving[:]:
                waiting[1].discard(me)
                settle_copies(waiting)

        program.turns.events.append(land)

    def settle_copies(waiting):
        if not waiting[1]:
            arriving.remove(waiting)
            waiting[0].arrive(COPYING)

    def copies_arrive(barrier, *, increment_count):
        program.yield_()
        assert not increment_count, "arrivals that the barrier counts"
        arriving.append((barrier, set(copying.get(program.partition, ()))))
        settle_copies(arriving[-1])

    def allocate_and_note(dtype, shape, layout):
        place = allocate(dtype, shape, layout)
        if isinstance(place, Shared):
            fenced.append(place.written)
        return place

    def multiply(a, b, acc, *, use_acc=True, is_async=False):
        program.yield_()
        for each in (a, b):
            if isinstance(each, Shared) and ((each.written > 0) | unseen(each.written)).any():
                raise Wrong("an operand was written by threads, and no fence_async_shared came after that")
        pending = Pending(acc, (a, b), use_acc)
        return pending if is_async else pending.result()

    def wait(outstanding=0, deps=()):
        program.yield_()
        if outstanding:
            assert outstanding == len(deps) == 1, "nothing else is simulated"
            deps[0].settle_before()
            return deps[0]
        results = [each.result() if isinstance(each, Pending) else each for each in deps]
        return results[0] if len(results) == 1 else tuple(results)

    fenced, in_flight, made, copying, arriving = [], [], [], {}, []
    gl = SimpleNamespace(
        **{
            name: getattr(torch, name)
            for name in ("int32", "int64", "uint8", "float32", "bfloat16", "float16")
        },
        float8e4nv=torch.float8_e4m3fn,
        pointer_type=lambda dtype: SimpleNamespace(of=dtype),
        cast=lambda x, dtype, bitcast: x.contiguous().view(dtype),
        join=lambda x, y: torch.stack((x, y), dim=-1),
        partition=lambda: program.partition,  # for planted bugs
        program_id=lambda axis: program.place[axis],
        load=load,
        store=store,
        allocate_shared_memory=allocate_and_note,
        warp_specialize=program.specialize,
        tma_load=tma_load,
        copy=copy,
        arange=lambda begin, end, layout=None: torch.arange(begin, end, dtype=torch.int32),
        zeros=lambda shape, dtype, layout=None: torch.zeros([int(each) for each in shape], dtype=dtype),
        full=lambda shape, value, dtype, layout=None: torch.full(
            [int(each) for each in shape], value, dtype=dtype
        ),
        where=tensors(torch.where),
        minimum=tensors(torch.minimum),
        maximum=tensors(torch.maximum),
        exp2=torch.exp2,
        log2=torch.log2,
        max=lambda x, axis: x.amax(axis),
        sum=lambda x, axis: x.sum(axis, dtype=x.dtype),
        expand_dims=lambda x, axis: x.unsqueeze(axis),
        reshape=torch.reshape,
        permute=torch.permute,
        split=lambda x: x.unbind(-1),
        convert_layout=lambda x, layout: x,
        cdiv=lambda x, y: -(-x // y),
        to_tensor=torch.as_tensor,
        static_range=range,
        constexpr=real.constexpr,
        **dict.fromkeys(("SliceLayout", "BlockedLayout", "NVMMADistributedLayout"), no_layout),
    )
    barriers = SimpleNamespace(
        MBarrierLayout=real_mbarrier.MBarrierLayout,
        init=lambda barrier, count: setattr(barrier, "count", count),
        arrive=arrive,
        expect=expect,
        wait=lambda barrier, parity: program.yield_(lambda: not barrier.waits(parity)),
    )
    return (
        gl,
        barriers,
        {
            "async_load": tma_load,
            "async_copy_global_to_shared": tma_load,
            "async_store": tma_store,
            "async_copy_shared_to_global": tma_store,
            "store_wait": store_wait,
            "ampere.async_load": copy,
            "ampere.async_copy_global_to_shared": copy,
            "ampere.mbarrier_arrive": copies_arrive,
            "make_tensor_descriptor": make_descriptor,
            "fence_async_shared": fence,
            "warpgroup_mma": multiply,
            "warpgroup_mma_wait": wait,
        },
    )


def translate(kernel, program, planted):
    """The kernel's Python function, its globals replaced by what is simulated, or by bugs: `planted(gl, barriers)`."""
    gl, barriers, functions = language(program)
    bugs = planted(gl, barriers)
    functions.update(bugs)
    done = {}

    def stand_in(value):
        if value is real:
            return gl
        if value is real_mbarrier:
            return barriers
        if isinstance(value, JITFunction):
            return bugs.get(value.fn.__name__) or function(value)
        if isinstance(value, real.constexpr):
            return value.value
        if callable(value) and not isinstance(value, type | ModuleType):
            # cp.async's functions are called as TMA's are.
            family = "ampere." if ".ampere." in getattr(value, "__module__", "") else ""
            return functions.get(family + getattr(value, "__name__", ""), value)
        return value

    def function(jitted):
        if jitted not in done:
            plain = jitted.fn
            names = {}
            done[jitted] = FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__)
            used = {**plain.__globals__}
            names.update({name: stand_in(used[name]) for name in plain.__code__.co_names if name in used})
            names["__builtins__"] = used["__builtins__"]
        return done[jitted]

    return function(kernel)


def no_bugs(_gl, _barriers):
    return {}


def launch_simulated(*, seed=0, planted=no_bugs):
    """For `launching_with`: Gluon kernels are simulated, others run in Triton's interpreter."""

    def launch(kernel, grid, *arguments, **constants):
        if not isinstance(kernel, GluonJITFunction):
            kernel[grid](*arguments, **constants)
            return
        given = [_argument(each) for each in arguments]
        kept = {name: each for name, each in constants.items() if name in kernel.arg_names}
        grid = (*grid, 1, 1)[:3]
        for number in range(grid[0] * grid[1] * grid[2]):
            place = (number % grid[0], number // grid[0] % grid[1], number // grid[0] // grid[1])
            translate(kernel, Program(place, seed + number), planted)(*given, **kept)

    return launch


def _argument(value):
    if isinstance(value, TensorDescriptor):
        return Tile(value.base, value.shape, value.strides, value.block_shape, value.layout)
    if isinstance(value, torch.Tensor):
        return Pointer(value)
    return value
