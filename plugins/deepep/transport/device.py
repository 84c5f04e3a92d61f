"""GPUs of one host: regions in their memory, and flags that kernels raise and wait for (`kernel`).

A signal or a wait is a kernel on the current stream; the host waits for nothing. A wait that runs out is recorded where
the host reads it without asking the device, and raised by the next call: a kernel cannot raise. Kernels that follow it
do nothing.

`Symmetric` is for GPUs that reach each other over NVLink. `CudaIpc` is for tests with several processes on one GPU.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, Self

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from ...kernels.layers import is_interpreting, on_device
from ...kernels.quantize import align
from .bootstrap import Bootstrap, GroupBootstrap, NotUsable, all_or_none, require_one_host
from .errors import CommunicationError
from .interface import SLOTS, Transport
from .shared_memory import SharedMemory

WORD: Final = 8
PAGE: Final = 4096
WARPS: Final = 1
NATIVE_ATOMICS: Final = 3
"""CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED of the CUDA driver."""
DEVICE_AT: Final = 6
"""Of the arguments by which torch opens a shared tensor: the index of its device."""


def head_bytes(size: int) -> int:
    """Bytes of flags before the data of a region."""
    return align(size * SLOTS * WORD, PAGE)


class DeviceTransport(Transport):
    """Whole regions, flags first, as this process maps them. Epochs are counted on the device."""

    looks: ClassVar[int] = 100
    """How often a wait looks at its flag in the interpreter, where no signal comes meanwhile."""

    def __init__(self, ranks: Bootstrap, regions: list[Tensor], *, num_bytes: int, timeout_s: float) -> None:
        device = regions[ranks.rank].device
        super().__init__(ranks.rank, ranks.size, num_bytes=num_bytes, device=device, timeout_s=timeout_s)
        head = head_bytes(self.size)
        assert all(len(each) >= head + num_bytes for each in regions), "flags and data of every rank"
        self._regions = [each[head : head + num_bytes] for each in regions]
        self._flags = [each[: self.size * SLOTS * WORD].view(torch.int64) for each in regions]
        starts = [each.data_ptr() for each in self._flags]
        self._flag_table = torch.tensor(starts, dtype=torch.int64, device=device)
        self._sent, self._waited = torch.zeros(2, SLOTS, self.size, dtype=torch.int64, device=device)
        self._all_active = torch.zeros(self.size, dtype=torch.int32, device=device)
        self._status = torch.zeros(1, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._phases = [f"slot {slot}" for slot in range(SLOTS)]

    def buffer(self, rank: int) -> Tensor:
        """As Transport.buffer."""
        self.check()
        return self._regions[rank]

    def signal(self, peer: int, slot: int, epoch: int) -> None:
        """As Transport.signal, on the current stream."""
        self._signal(1, peer, slot, epoch, None, counted=False)

    def wait(self, peer: int, slot: int, epoch: int, *, what: str, fatal: bool = True) -> None:
        """As Transport.wait, for the current stream: this returns at once, and a later call raises."""
        assert fatal, "a kernel drops a rank through its mask, see wait_all"
        self._wait(1, peer, slot, epoch, what, inactive=None, counted=False)

    def signal_all(self, slot: int, inactive: Tensor | None = None) -> None:
        """As Transport.signal_all."""
        self._signal(self.size - 1, self.rank + 1, slot, 0, inactive, counted=True)

    def wait_all(  # noqa: PLR0913 (a wait and its variants)
        self, slot: int, what: str, *, less: int = 0, inactive: Tensor | None = None, drop: bool = False,
        costs: Tensor | None = None,
    ) -> None:  # fmt: skip
        """As Transport.wait_all."""
        assert inactive is not None or not drop, "a rank is dropped by its mark"
        self._wait(
            self.size - 1, self.rank + 1, slot, 0, what, inactive=inactive, counted=True, less=less, drop=drop,
            costs=costs,
        )  # fmt: skip

    def check(self) -> None:
        """Raises what a kernel has recorded: PeerTimeout. Does not wait for the device."""
        recorded = int(self._status[0])
        if recorded and self._failure is None and not self._is_closed:
            slot, peer = divmod(recorded - 1, self.size)
            self._failure = self._timeout(peer, self._phases[slot])
        self._require_usable()

    def fail(self, error: CommunicationError) -> None:
        """As Transport.fail. Peers find out by their time-outs: no kernel would read a reason."""
        if self._failure is None:
            self._failure = error

    def close(self) -> None:
        """As Transport.close."""
        if not self._is_closed:
            self._is_closed = True
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self._regions.clear()
            self._flags.clear()

    def _signal(  # noqa: PLR0913 (the kernel's own)
        self, count: int, first: int, slot: int, epoch: int, inactive: Tensor | None, *, counted: bool
    ) -> None:
        from ...kernels.aot import start
        from . import kernel

        self.check()
        with on_device(self._flag_table):
            if count:
                start(
                    kernel.signal_kernel, (count,), self._flag_table, self._sent,
                    self._all_active if inactive is None else inactive, self.stopped, self.rank, first, slot, epoch,
                    RANKS=self.size, COUNTED=counted, num_warps=WARPS,
                )  # fmt: skip

    def _wait(  # noqa: PLR0913 (the kernel's own)
        self, count: int, first: int, slot: int, epoch: int, what: str, *, inactive: Tensor | None, counted: bool,
        less: int = 0, drop: bool = False, costs: Tensor | None = None,
    ) -> None:  # fmt: skip
        from ...kernels.aot import start
        from . import kernel

        self.check()
        self._phases[slot] = what
        limit = self.looks if is_interpreting() else int(self.timeout_s * 1e9)
        with on_device(self._flag_table):
            if count:
                start(
                    kernel.wait_kernel, (count,), self._flag_table, self._waited,
                    self._all_active if inactive is None else inactive, self.stopped, self._status.data_ptr(),
                    self._waited if costs is None else costs, self.rank, first, slot, epoch, limit,
                    RANKS=self.size, COUNTED=counted, LESS=less, DROP=drop, COSTS=costs is not None,
                    CLOCK=not is_interpreting(), num_warps=WARPS,
                )  # fmt: skip


class Symmetric(DeviceTransport):
    """Regions of `torch.distributed._symmetric_memory`."""

    name: ClassVar[str] = "symmetric-memory"
    device_type: ClassVar[str | None] = "cuda"

    @classmethod
    def open(cls, ranks: Bootstrap, num_bytes: int, *, device: torch.device, timeout_s: float) -> Self:
        """All ranks together. Raises: NotUsable on all of them.

        Nothing is shared before all ranks are known to be on one host, with a GPU each, whose atomic operations reach
        all others: flags are such.
        """
        require_one_host(ranks)
        uuids = ranks.gather(_uuid(device))
        if len(set(uuids)) < ranks.size:
            raise NotUsable("ranks share a GPU")
        with all_or_none(ranks):
            visible = [_uuid(torch.device("cuda", each)) for each in range(torch.cuda.device_count())]
            own_index = torch.cuda.current_device() if device.index is None else device.index
            require_atomics(own_index, uuids, visible, _has_atomics)
            if not isinstance(ranks, GroupBootstrap):
                raise TypeError("a communicator of MPI is no torch.distributed process group")
        assert isinstance(ranks, GroupBootstrap), "it was looked at"
        length = head_bytes(ranks.size) + num_bytes
        own, regions = torch.empty(0), []
        with all_or_none(ranks):
            from torch.distributed import _symmetric_memory

            own = _symmetric_memory.empty(length, dtype=torch.uint8, device=device)
            own.zero_()
            torch.cuda.synchronize(device)
        with all_or_none(ranks):
            shared = _symmetric_memory.rendezvous(own, ranks.group.group_name)
            regions = [
                own if rank == ranks.rank else shared.get_buffer(rank, (length,), torch.uint8)
                for rank in range(ranks.size)
            ]
        return cls(ranks, regions, num_bytes=num_bytes, timeout_s=timeout_s)


def _uuid(device: torch.device) -> str:
    return str(torch.cuda.get_device_properties(device).uuid)


def require_atomics(
    own: int, uuids: Sequence[str], visible: Sequence[str], has_atomics: Callable[[int, int], bool]
) -> None:
    """GPU `own` reaches the memory of the GPUs `uuids` by atomic operations, if these are among the `visible` ones.

    Raises: LookupError for GPUs that this process does not see, RuntimeError without atomic operations.
    """
    for uuid in uuids:
        if uuid not in visible:
            raise LookupError(
                f"GPU {uuid} is not visible: give all processes all GPUs (CUDA_VISIBLE_DEVICES)"
            )
        peer = visible.index(uuid)
        if peer != own and not has_atomics(own, peer):
            raise RuntimeError(
                f"GPU {own} has no atomic operations on the memory of GPU {peer}: no NVLink between"
            )


def _has_atomics(own: int, peer: int) -> bool:
    """What the driver reports."""
    found = ctypes.c_int(0)
    driver = ctypes.CDLL("libcuda.so.1")
    return (
        not driver.cuDeviceGetP2PAttribute(ctypes.byref(found), NATIVE_ATOMICS, own, peer) and found.value > 0
    )


class CudaIpc(DeviceTransport):
    """Memory of one GPU that several processes map through CUDA's handles, as torch shares storages.

    Processes on one GPU take turns on it, so a kernel that waits would stop the process that it waits for: a signal
    records an event, and a wait makes the stream wait for it. That an event was recorded is reported through memory of
    the host, where a lost rank is noticed too.
    """

    name: ClassVar[str] = "cuda-ipc"
    device_type: ClassVar[str | None] = "cuda"
    signal_all = Transport.signal_all
    wait_all = Transport.wait_all

    def __init__(  # noqa: PLR0913 (what was opened)
        self, ranks: Bootstrap, regions: list[Tensor], host: SharedMemory, events: list[list[Any]], *,
        num_bytes: int, timeout_s: float,
    ) -> None:  # fmt: skip
        super().__init__(ranks, regions, num_bytes=num_bytes, timeout_s=timeout_s)
        self._host = host
        self._events = events
        """By rank and slot."""

    @classmethod
    def open(cls, ranks: Bootstrap, num_bytes: int, *, device: torch.device, timeout_s: float) -> Self:
        """All ranks together. Raises: NotUsable on all of them."""
        require_one_host(ranks)
        if len(set(ranks.gather(_uuid(device)))) > 1:
            raise NotUsable("ranks have different GPUs, which this transport does not connect")
        host = SharedMemory.open(ranks, 1, device=torch.device("cpu"), timeout_s=timeout_s)
        try:
            regions, events = _opened_all(ranks, head_bytes(ranks.size) + num_bytes, device)
        except NotUsable:
            host.close()
            raise
        return cls(ranks, regions, host, events, num_bytes=num_bytes, timeout_s=timeout_s)

    def signal(self, peer: int, slot: int, epoch: int) -> None:
        """As Transport.signal, on the current stream."""
        self.check()
        self._events[self.rank][slot].record()
        self._host.signal(peer, slot, epoch)

    def wait(self, peer: int, slot: int, epoch: int, *, what: str, fatal: bool = True) -> None:
        """As Transport.wait, for the current stream. This thread waits until the peer has recorded."""
        self.check()
        self._host.wait(peer, slot, epoch, what=what, fatal=fatal)
        if epoch > 0:
            torch.cuda.current_stream(self.device).wait_event(self._events[peer][slot])

    def fail(self, error: CommunicationError) -> None:
        """As Link.fail."""
        super().fail(error)
        self._host.fail(error)

    def close(self) -> None:
        """As Link.close."""
        if not self._is_closed:
            super().close()
            self._host.close()


def _opened_all(ranks: Bootstrap, length: int, device: torch.device) -> tuple[list[Tensor], list[list[Any]]]:
    """Regions and events, by rank. Raises: NotUsable on all ranks."""
    own: Tensor = torch.empty(0)
    events: list[Any] = []
    offer: Any = None
    with all_or_none(ranks):
        own = torch.zeros(length, dtype=torch.uint8, device=device)
        torch.cuda.synchronize(device)
        events = [torch.cuda.Event(interprocess=True) for _ in range(SLOTS)]  # type: ignore[no-untyped-call]
        offer = (reduce_tensor(own), [each.ipc_handle() for each in events])  # type: ignore[no-untyped-call]
    offers = ranks.gather(offer)
    regions, all_events = [own] * ranks.size, [events] * ranks.size
    with all_or_none(ranks):
        for rank, ((rebuild, arguments), handles) in enumerate(offers):
            if rank == ranks.rank:
                continue  # a process cannot open what it has made
            given = list(arguments)
            given[DEVICE_AT] = own.device.index  # the same GPU may have another number in each process
            regions[rank] = rebuild(*given)
            all_events[rank] = [
                torch.cuda.Event.from_ipc_handle(device, each)  # type: ignore[no-untyped-call]
                for each in handles
            ]
    return regions, all_events


__all__ = ["CudaIpc", "DeviceTransport", "Symmetric", "head_bytes", "require_atomics"]
