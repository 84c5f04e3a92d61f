"""`Buffer`: dispatch and combine between ranks, with the original's names, arguments, results and assertions.

Here arguments are checked and results are put together; `normal` does the work, and `low_latency` has the methods of
low-latency mode. Tensors are used where the transport's regions are, and are copied there and back if they come from
another device.
"""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from ...kernels.checks import check_contiguous
from ...kernels.errors import BadCall, refuse
from ..normal import layout
from ..normal.arguments import EXPERTS_PER_RANK_MAX, check_biases, check_rows, take_tokens
from ..normal.collective import CollectiveDispatcher
from ..normal.dispatcher import MappedDispatcher
from ..normal.tokens import Handle, Tokens
from ..transport import choose
from ..transport.bootstrap import Bootstrap, CommBootstrap, GroupBootstrap, agree
from ..transport.collectives import Collectives
from ..transport.errors import CommunicationError
from ..transport.event import CommunicationStream, EventHandle, EventOverlap
from ..transport.interface import Link, Transport
from .config import Config
from .low_latency import LowLatencyMethods

topk_idx_t: Final = torch.int64
"""Of expert numbers; int32 is taken as well, and given back."""

FP8_CAPABILITY: Final = (8, 9)
"""Of the oldest GPUs with e4m3."""

_Rows: TypeAlias = Tensor | tuple[Tensor, Tensor]
_Dispatched: TypeAlias = tuple[
    _Rows, Tensor | None, Tensor | None, list[int] | None, Handle | None, EventOverlap
]


class Buffer(LowLatencyMethods):
    """Memory through which the ranks of a group exchange tokens.

    `num_nvl_bytes`: for normal mode, with room for the routes and for 16 bytes of each row of a call. `num_rdma_bytes`:
    for low-latency mode. Not in the original: `transport` (by default LUCIOLA_DEEPEP_TRANSPORT, else the best),
    `timeout_s` (LUCIOLA_DEEPEP_TIMEOUT_S, else 100), `device` (the current GPU, else the CPU). Arguments of the
    original that steer its network cards change nothing.

    All ranks make one together and call its methods in the same order. Raises: RanksDisagree, on all ranks.
    """

    num_sms: ClassVar[int] = 20

    def __init__(
        self, group: dist.ProcessGroup | None, num_nvl_bytes: int = 0, num_rdma_bytes: int = 0,
        low_latency_mode: bool = False, num_qps_per_rank: int = 24, allow_nvlink_for_low_latency_mode: bool = True,
        allow_mnnvl: bool = False, use_fabric: bool = False, explicitly_destroy: bool = False,
        enable_shrink: bool = False, comm: Any = None, *, transport: str | None = None,
        timeout_s: float | None = None, device: torch.device | str | None = None,
    ) -> None:  # fmt: skip
        assert group is not None or comm is not None, (
            "give a torch.distributed process group, or a communicator of MPI"
        )
        if num_nvl_bytes < 0 or num_rdma_bytes < 0:
            given = (num_nvl_bytes, num_rdma_bytes)
            refuse("num_nvl_bytes, num_rdma_bytes", given, "they must not be negative")
        ranks: Bootstrap = CommBootstrap(comm) if group is None else GroupBootstrap(group)
        self.group = group
        self.rank, self.group_size = ranks.rank, ranks.size
        self.num_nvl_bytes, self.num_rdma_bytes = num_nvl_bytes, num_rdma_bytes
        self.low_latency_mode, self.enable_shrink = low_latency_mode, enable_shrink
        self.explicitly_destroy = explicitly_destroy
        facts = {"num_nvl_bytes": num_nvl_bytes, "num_rdma_bytes": num_rdma_bytes,
                 "low_latency_mode": low_latency_mode, "enable_shrink": enable_shrink}  # fmt: skip
        agree(ranks, facts, phase="making a Buffer")
        self.transport = self._open(
            ranks,
            num_nvl_bytes + num_rdma_bytes,
            device=_device(device),
            name=transport or choose.transport_name(),
            timeout_s=choose.timeout_s() if timeout_s is None else timeout_s,
        )
        self.communication = CommunicationStream(self.transport.device)
        self._normal: MappedDispatcher | CollectiveDispatcher | None = None
        if isinstance(self.transport, Collectives):
            self._normal = CollectiveDispatcher(self.transport)
        elif num_nvl_bytes:
            assert isinstance(self.transport, Transport), "it has regions"
            self._normal = MappedDispatcher(self.transport, num_bytes=num_nvl_bytes)

    # -- the original's small methods --

    def destroy(self) -> None:
        """Leave. Only for buffers that were made with `explicitly_destroy`; others leave when they are collected."""
        assert self.explicitly_destroy, "`explicitly_destroy` flag must be set"
        self.transport.close()

    def __del__(self) -> None:
        transport = getattr(self, "transport", None)
        if transport is not None:
            with contextlib.suppress(CommunicationError):
                transport.close()

    @staticmethod
    def is_sm90_compiled() -> bool:
        """Whether FP8 works on this machine: on a CPU, and on GPUs that have it."""
        return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= FP8_CAPABILITY

    @staticmethod
    def set_num_sms(new_num_sms: int) -> None:
        """How many multiprocessors the kernels of normal mode may keep busy, where a call has no `config`."""
        assert new_num_sms % 2 == 0, "The SM count must be even"
        Buffer.num_sms = new_num_sms

    @staticmethod
    def capture() -> EventOverlap:
        """An event of the current stream."""
        return EventOverlap(EventHandle())

    def get_comm_stream(self) -> Any:
        """The stream on which calls run: the buffer's own; on a CPU, the current one."""
        return torch.cpu.current_stream() if self.communication.stream is None else self.communication.stream

    def get_local_buffer_tensor(
        self, dtype: torch.dtype, size: torch.Size | None = None, offset: int = 0, use_rdma_buffer: bool = False
    ) -> Tensor:  # fmt: skip
        """This rank's region of low-latency mode, or of normal mode, from `offset` bytes on."""
        start, end = 0, self.num_nvl_bytes
        if use_rdma_buffer:
            start, end = end, end + self.num_rdma_bytes
        if not 0 <= offset <= end - start:
            refuse("offset", offset, f"it must be 0 to {end - start}")
        if not isinstance(self.transport, Transport):
            raise BadCall(f"the transport {self.transport.name} has no regions")
        region = self.transport.buffer(self.rank)[start + offset : end]
        tensor = region[: len(region) // dtype.itemsize * dtype.itemsize].view(dtype)
        if size is None:
            return tensor
        assert tensor.numel() >= size.numel(), (
            f"{size.numel()} of {dtype} do not fit into {len(region)} bytes"
        )
        return tensor[: size.numel()].view(size)

    @staticmethod
    def get_dispatch_config(num_ranks: int) -> Config:
        """`num_sms`, for any ranks: the original's other numbers steer queues, which there are none of."""
        return Config(Buffer.num_sms, 6, 256, 6, 128)

    @staticmethod
    def get_combine_config(num_ranks: int) -> Config:
        """As `get_dispatch_config`."""
        return Config(Buffer.num_sms, 4, 256, 6, 128)

    # -- normal mode --

    def get_dispatch_layout(
        self, topk_idx: Tensor, num_experts: int, previous_event: EventOverlap | None = None,
        async_finish: bool = False, allocate_on_comm_stream: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor, EventOverlap]:  # fmt: skip
        """Where tokens go: num_tokens_per_rank (R,), None, num_tokens_per_expert (E,), is_token_in_rank (T, R), event.

        topk_idx (T, K) has -1 for no expert. The second result is the original's num_tokens_per_rdma_rank, of tokens
        that travel once for each node: here all go directly.
        """
        _check_events(previous_event, async_finish, allocate_on_comm_stream)
        with self.communication.call(previous_event) as call:
            found = layout.count(topk_idx, num_experts, num_ranks=self.group_size)
            call.keep(topk_idx, vars(found).values())
        event = call.ended(asynchronous=async_finish)
        return found.num_tokens_per_rank, None, found.num_tokens_per_expert, found.is_token_in_rank, event

    def dispatch(
        self, x: _Rows, handle: Handle | None = None, num_tokens_per_rank: Tensor | None = None,
        num_tokens_per_rdma_rank: Tensor | None = None, is_token_in_rank: Tensor | None = None,
        num_tokens_per_expert: Tensor | None = None, topk_idx: Tensor | None = None,
        topk_weights: Tensor | None = None, expert_alignment: int = 1, num_worst_tokens: int = 0,
        config: Config | None = None, previous_event: EventOverlap | None = None, async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> _Dispatched:  # fmt: skip
        """Send each token once to every rank that has one of its experts.

        x (T, H) bfloat16, or (e4m3 (T, H), scales (T, …) float32 or int32). Returns recv_x like x, rows ordered by
        (source rank, token); recv_topk_idx (N, K), local expert numbers or -1; recv_topk_weights (N, K), 0 there;
        tokens for each local expert, a list rounded up to `expert_alignment`; handle; event. With `num_worst_tokens`
        there are so many rows, those without a token have -1, and the list is empty. With `handle`, tokens go where
        those of the dispatch that made it went: (recv_x, None, None, None, None, event).
        """
        with self.reporting("dispatch"):
            _check_events(previous_event, async_finish, allocate_on_comm_stream)
            num_sms = Buffer.num_sms if config is None else config.num_sms
            if (topk_idx is None) != (topk_weights is None):
                raise BadCall("give topk_idx and topk_weights together")
            normal = self.normal_mode()
            if handle is None and expert_alignment < 1:
                refuse("expert_alignment", expert_alignment, "it must be positive")
            if num_worst_tokens < 0:
                refuse("num_worst_tokens", num_worst_tokens, "it must not be negative")
        with self.communication.call(previous_event) as call:
            with self.reporting("dispatch"):
                home = x[0].device if isinstance(x, tuple | list) else x.device
                tokens = take_tokens(x, topk_idx, topk_weights, device=self.transport.device)
                if handle is not None:
                    assert topk_idx is None, "a handle has the routing already"
                    self._check_handle(handle, tokens=len(tokens.x))
                else:
                    member = self._routing(
                        tokens, num_tokens_per_rank, is_token_in_rank, num_tokens_per_expert
                    )
            results: tuple[Any, ...]
            if handle is not None:
                rows = normal.cached_dispatch(tokens, handle, num_sms=num_sms)
                results = (_pair(rows, home), None, None, None, None)
            else:
                assert num_tokens_per_expert is not None, "it was checked"
                came = normal.dispatch(
                    tokens, member, num_tokens_per_expert, channels=max(num_sms // 2, 1), num_sms=num_sms,
                    rows=num_worst_tokens or None,
                )  # fmt: skip
                idx, weights = (
                    None if each is None else each.to(home)
                    for each in (came.tokens.topk_idx, came.tokens.topk_weights)
                )
                rounded = [-(-each // expert_alignment) * expert_alignment for each in came.expert_counts]
                counts = [] if num_worst_tokens else rounded
                results = (_pair(came.tokens, home), idx, weights, counts, came.handle)
            call.keep(tokens.columns(), num_tokens_per_expert, handle, results)
        return (*results, call.ended(asynchronous=async_finish))

    def combine(
        self, x: Tensor, handle: Handle, topk_weights: Tensor | None = None,
        bias: Tensor | tuple[Tensor, Tensor] | None = None, config: Config | None = None,
        previous_event: EventOverlap | None = None, async_finish: bool = False, allocate_on_comm_stream: bool = False,
    ) -> tuple[Tensor, Tensor | None, EventOverlap]:  # fmt: skip
        """Sum each token's rows over the ranks that received it; no weights are applied.

        x (N, H) bfloat16, in the order of what was dispatched. topk_weights (N, K) float32 are summed likewise. bias
        (T, H) is added. Returns combined_x (T, H) bfloat16, combined_topk_weights (T, K) or None, event.
        """
        with self.reporting("combine"):
            _check_events(previous_event, async_finish, allocate_on_comm_stream)
            num_sms = Buffer.num_sms if config is None else config.num_sms
            normal = self.normal_mode()
        with self.communication.call(previous_event) as call:
            with self.reporting("combine"):
                check_rows(x, "x", torch.bfloat16)
                tokens, rows = self._check_handle(handle), normal.rows_of(handle)
                if len(x) < rows:
                    allowed = f"{rows} tokens arrived by the dispatch of this handle"
                    refuse("x", f"of {len(x)} rows", allowed)
                columns = [self._here(x)]
                if topk_weights is not None:
                    check_rows(topk_weights, "topk_weights", torch.float32, alignment=4)
                    if len(topk_weights) != len(x):
                        refuse("topk_weights", f"of {len(topk_weights)} rows", f"x has {len(x)}")
                    columns.append(self._here(topk_weights))
                biases = [self._here(each) for each in check_biases(bias, (tokens, x.shape[1]))]
            sums = normal.combine(columns, handle, biases, num_sms=num_sms)
            combined = [each.to(x.device) for each in sums]
            call.keep(columns, biases, handle, combined)
        weights = combined[1] if len(combined) > 1 else None
        return combined[0], weights, call.ended(asynchronous=async_finish)

    internode_dispatch = dispatch
    internode_combine = combine

    # -- parts --

    def _open(self, ranks: Bootstrap, num_bytes: int, **options: Any) -> Link:
        return choose.open_transport(ranks, num_bytes, **options)

    @contextmanager
    def reporting(self, call: str) -> Iterator[None]:
        """Check arguments inside. If they are refused, this is reported to the ranks that wait for this one."""
        try:
            yield
        except (ValueError, TypeError, AssertionError) as error:
            if self._normal is not None and not isinstance(error, CommunicationError):
                self._normal.refuse(error, call)
            raise

    def normal_mode(self) -> MappedDispatcher | CollectiveDispatcher:
        """What does the work of dispatch and combine. Raises: BadCall, without memory for it."""
        if self._normal is None:
            raise BadCall("this buffer has no memory for normal mode: make it with num_nvl_bytes")
        return self._normal

    def _check_handle(self, handle: Handle, *, tokens: int | None = None) -> int:
        """How many tokens were sent by its dispatch."""
        if not isinstance(handle, Handle):
            raise BadCall("the handle must be the object that dispatch of this buffer returned")
        sent, ranks = handle.is_token_in_rank.shape
        if ranks != self.group_size:
            raise BadCall(f"the handle is of {ranks} ranks; this buffer has {self.group_size}")
        if tokens is not None and tokens != sent:
            refuse("x", f"of {tokens} tokens", f"the handle is of {sent}")
        return sent

    def _here(self, x: Tensor) -> Tensor:
        return x.to(self.transport.device)

    def _routing(
        self, tokens: Tokens, per_rank: Tensor | None, in_rank: Tensor | None, per_expert: Tensor | None
    ) -> Tensor:
        """Which token goes to which rank, checked against the counts."""
        assert per_rank is not None, "without a handle, give num_tokens_per_rank"
        assert in_rank is not None, "without a handle, give is_token_in_rank"
        assert per_expert is not None, "without a handle, give num_tokens_per_expert"
        ranks, experts = self.group_size, per_expert.numel()
        check_contiguous("is_token_in_rank", in_rank, (len(tokens.x), ranks), (torch.bool,))
        check_contiguous("num_tokens_per_rank", per_rank, (ranks,), (torch.int32,))
        check_contiguous("num_tokens_per_expert", per_expert, (experts,), (torch.int32,))
        layout.check_experts(experts, ranks)
        if experts > EXPERTS_PER_RANK_MAX * ranks:
            refuse("num_experts", experts, f"a rank has at most {EXPERTS_PER_RANK_MAX}")
        member = self._here(in_rank)
        if member.device.type == "cpu" and not torch.equal(member.sum(0, dtype=torch.int32), per_rank.cpu()):
            refuse("num_tokens_per_rank", per_rank.tolist(), "is_token_in_rank says otherwise")
        if tokens.topk_idx is not None:
            layout.check_indices(tokens.topk_idx, experts)
        return member


def get_physical_domain_size(group: dist.ProcessGroup) -> tuple[int, int]:
    """Nodes, and ranks of each: hosts, if they have equally many ranks one after the other. All ranks call it."""
    ranks = GroupBootstrap(group)
    hosts = ranks.gather(ranks.host)
    size = hosts.count(hosts[0])
    in_order = all(len(set(hosts[start : start + size])) == 1 for start in range(0, len(hosts), size))
    if len(hosts) % size or not in_order or len(set(hosts)) != len(hosts) // size:
        size = len(hosts)
    return len(hosts) // size, size


def get_logical_domain_size(group: dist.ProcessGroup, allow_hybrid_mode: bool = True) -> tuple[int, int]:
    """Groups between which rows take two hops, and ranks of each: one, as all rows go directly."""
    return 1, group.size()


def _check_events(previous_event: EventOverlap | None, async_finish: bool, allocate: bool) -> None:
    assert not allocate or (previous_event is not None and async_finish), (
        "allocate_on_comm_stream needs previous_event and async_finish"
    )


def _pair(tokens: Tokens, home: torch.device) -> _Rows:
    x = tokens.x.to(home)
    return x if tokens.scales is None else (x, tokens.scales.to(home))


def _device(device: torch.device | str | None) -> torch.device:
    if device is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(device or "cpu")


__all__ = ["Buffer", "get_logical_domain_size", "get_physical_domain_size", "topk_idx_t"]
