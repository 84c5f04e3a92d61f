"""`Buffer`: dispatch and combine between ranks, with the original's names, arguments, results and assertions.

Here arguments are checked and results are put together; `ways` leads to what does the work, and `low_latency` has the
methods of low-latency mode. Tensors live
where the transport's regions are, and are brought there and back if they come from another device.
"""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final

import torch
import torch.distributed as dist
from torch import Tensor

from ..kernels.errors import BadCall, refuse
from . import layout, settings
from .arguments import check_biases, check_rows, take_tokens
from .config import Config, combine_config, dispatch_config
from .event import EventHandle, EventOverlap
from .failure import CommunicationError, refused
from .low_latency.methods import LowLatencyMethods
from .normal import Received, Tokens
from .transport.choose import open_transport
from .transport.interface import Transport
from .transport.members import CommMembers, GroupMembers, Members, agree
from .transport.mixed import Mixed
from .ways import AnyHandle, Ways

topk_idx_t: Final = torch.int64
"""Of expert numbers; int32 is taken as well, and given back."""

EXPERTS_PER_RANK_MAX: Final = 1024


class Buffer(LowLatencyMethods):
    """Memory through which the ranks of a group exchange tokens.

    `num_nvl_bytes`: for normal mode inside a node, any size from a token on. `num_rdma_bytes`: for low-latency mode,
    and between nodes. What these do not know of the machine is here: `transport` (by default LUCIOLA_DEEPEP_TRANSPORT,
    else the best), `ranks_per_node` (LUCIOLA_DEEPEP_RANKS_PER_NODE, else the ranks of a host), `timeout_s`
    (LUCIOLA_DEEPEP_TIMEOUT_S, else 100), `device` (the current GPU, else the CPU). Arguments of the original that steer
    its network cards change nothing.

    All ranks make one together and call its methods in the same order. Raises: RanksDisagree, on all ranks.
    """

    num_sms: ClassVar[int] = 20

    def __init__(  # noqa: PLR0913 (the original's)
        self,
        group: dist.ProcessGroup | None,
        num_nvl_bytes: int = 0,
        num_rdma_bytes: int = 0,
        low_latency_mode: bool = False,  # noqa: FBT001, FBT002
        num_qps_per_rank: int = 24,  # noqa: ARG002
        allow_nvlink_for_low_latency_mode: bool = True,  # noqa: FBT001, FBT002, ARG002
        allow_mnnvl: bool = False,  # noqa: FBT001, FBT002, ARG002
        use_fabric: bool = False,  # noqa: FBT001, FBT002, ARG002
        explicitly_destroy: bool = False,  # noqa: FBT001, FBT002
        enable_shrink: bool = False,  # noqa: FBT001, FBT002
        comm: Any = None,
        *,
        transport: str | None = None,
        ranks_per_node: int | None = None,
        timeout_s: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        assert group is not None or comm is not None, (
            "give a torch.distributed process group, or a communicator of MPI"
        )
        if num_nvl_bytes < 0 or num_rdma_bytes < 0:
            refuse(
                "num_nvl_bytes, num_rdma_bytes", (num_nvl_bytes, num_rdma_bytes), "they must not be negative"
            )
        name, wanted = transport or settings.transport_name(), ranks_per_node or settings.ranks_per_node()
        members = _members(group, comm, wanted if name == Mixed.name else None)
        self.group = group
        self.rank, self.group_size = members.rank, members.size
        self.num_nvl_bytes, self.num_rdma_bytes = num_nvl_bytes, num_rdma_bytes
        self.low_latency_mode = low_latency_mode
        self.explicitly_destroy = explicitly_destroy
        self.enable_shrink = enable_shrink
        facts = {"num_nvl_bytes": num_nvl_bytes, "num_rdma_bytes": num_rdma_bytes, "ranks_per_node": wanted,
                 "low_latency_mode": low_latency_mode, "enable_shrink": enable_shrink}  # fmt: skip
        agree(members, facts, phase="making a Buffer")
        self.ranks_per_node = node_size(members, wanted)
        self.transport = self._open(
            members,
            num_nvl_bytes + num_rdma_bytes,
            device=_device(device),
            name=name,
            timeout_s=settings.timeout_s() if timeout_s is None else timeout_s,
        )
        if not self.transport.crosses_nodes:
            if self.num_nodes > 1 and wanted is not None:
                self.transport.close()
                refuse("ranks_per_node", wanted, f"all ranks are one node over {self.transport}")
            self.ranks_per_node = self.group_size
        self._ways = Ways(
            self.transport,
            ranks_per_node=self.ranks_per_node,
            num_nvl_bytes=num_nvl_bytes,
            num_rdma_bytes=num_rdma_bytes,
        )

    # -- the original's small methods --

    @property
    def num_nodes(self) -> int:
        """Of `ranks_per_node` ranks each."""
        return self.group_size // self.ranks_per_node

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
        """Whether FP8 and what else needs SM90 in the original is there: always."""
        return True

    @staticmethod
    def set_num_sms(new_num_sms: int) -> None:
        """How many programs a call's kernels may have; those of normal mode are made of pairs."""
        assert new_num_sms % 2 == 0, "The SM count must be even"
        Buffer.num_sms = new_num_sms

    @staticmethod
    def capture() -> EventOverlap:
        """An event of the current stream."""
        return EventOverlap(EventHandle())

    def get_comm_stream(self) -> Any:
        """The stream on which calls run: the current one."""
        return (
            torch.cuda.current_stream()
            if self.transport.device.type == "cuda"
            else torch.cpu.current_stream()
        )

    def get_local_buffer_tensor(
        self,
        dtype: torch.dtype,
        size: torch.Size | None = None,
        offset: int = 0,
        use_rdma_buffer: bool = False,  # noqa: FBT001, FBT002 (the original's)
    ) -> Tensor:
        """This rank's region, or its part of normal mode alone, from `offset` bytes on."""
        start, end = (
            (self.num_nvl_bytes, self.num_nvl_bytes + self.num_rdma_bytes)
            if use_rdma_buffer
            else (0, self.num_nvl_bytes)
        )
        if not 0 <= offset <= end - start:
            refuse("offset", offset, f"it must be 0 to {end - start}")
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
        """The original's choice for so many ranks."""
        return dispatch_config(num_ranks, Buffer.num_sms)

    @staticmethod
    def get_combine_config(num_ranks: int) -> Config:
        """The original's choice for so many ranks."""
        return combine_config(num_ranks, Buffer.num_sms)

    # -- normal mode --

    def get_dispatch_layout(
        self,
        topk_idx: Tensor,
        num_experts: int,
        previous_event: EventOverlap | None = None,
        async_finish: bool = False,  # noqa: FBT001, FBT002
        allocate_on_comm_stream: bool = False,  # noqa: FBT001, FBT002
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor, EventOverlap]:
        """Where tokens go: num_tokens_per_rank (R,), num_tokens_per_rdma_rank (nodes,) or None,
        num_tokens_per_expert (E,), is_token_in_rank (T, R), event. topk_idx (T, K) has -1 for no expert.
        """
        _begin(previous_event, async_finish, allocate_on_comm_stream)
        found = layout.count(
            topk_idx, num_experts, num_ranks=self.group_size, ranks_per_node=self.ranks_per_node
        )
        return (
            found.num_tokens_per_rank,
            found.num_tokens_per_rdma_rank,
            found.num_tokens_per_expert,
            found.is_token_in_rank,
            _end(async_finish),
        )

    def dispatch(  # noqa: PLR0913 (the original's)
        self,
        x: Tensor | tuple[Tensor, Tensor],
        handle: AnyHandle | None = None,
        num_tokens_per_rank: Tensor | None = None,
        num_tokens_per_rdma_rank: Tensor | None = None,
        is_token_in_rank: Tensor | None = None,
        num_tokens_per_expert: Tensor | None = None,
        topk_idx: Tensor | None = None,
        topk_weights: Tensor | None = None,
        expert_alignment: int = 1,
        num_worst_tokens: int = 0,
        config: Config | None = None,
        previous_event: EventOverlap | None = None,
        async_finish: bool = False,  # noqa: FBT001, FBT002
        allocate_on_comm_stream: bool = False,  # noqa: FBT001, FBT002
    ) -> tuple[
        Tensor | tuple[Tensor, Tensor],
        Tensor | None,
        Tensor | None,
        list[int] | None,
        AnyHandle | None,
        EventOverlap,
    ]:
        """Send each token once to every rank that has one of its experts.

        x (T, H) bfloat16, or (e4m3 (T, H), scales (T, …) float32 or int32). Returns recv_x like x, rows ordered by
        (source rank, token); recv_topk_idx (N, K), local expert numbers or -1; recv_topk_weights (N, K), 0 there;
        tokens for each local expert, a list rounded up to `expert_alignment`; handle; event. With `num_worst_tokens`
        there are so many rows, those without a token have -1, and the list is empty. With `handle`, tokens go where
        those of the dispatch that made it went: (recv_x, None, None, None, None, event).
        """
        with self._telling("dispatch"):
            _begin(previous_event, async_finish, allocate_on_comm_stream)
            config = self.get_dispatch_config(self.group_size) if config is None else config
            if (topk_idx is None) != (topk_weights is None):
                raise BadCall("give topk_idx and topk_weights together")
            tokens = take_tokens(x, topk_idx, topk_weights, device=self.transport.device)
            if handle is not None:
                assert topk_idx is None and topk_weights is None, "a handle has the routing already"  # noqa: PT018
                self._ways.check_handle(handle, tokens=len(tokens.x))
            else:
                member = self._routing(
                    tokens,
                    num_tokens_per_rank,
                    num_tokens_per_rdma_rank,
                    is_token_in_rank,
                    num_tokens_per_expert,
                )
                if expert_alignment < 1:
                    refuse("expert_alignment", expert_alignment, "it must be positive")
                if num_worst_tokens < 0:
                    refuse("num_worst_tokens", num_worst_tokens, "it must not be negative")
        home = x[0].device if isinstance(x, tuple | list) else x.device
        if handle is not None:
            return (
                _pair(self._ways.cached_dispatch(tokens, handle), home),
                None,
                None,
                None,
                None,
                _end(async_finish),
            )
        assert num_tokens_per_expert is not None, "it was looked at"
        received = self._ways.dispatch(
            tokens, member, num_tokens_per_expert, channels=max(config.num_sms // 2, 1), rows=num_worst_tokens or None
        )  # fmt: skip
        return (*_results(received, home, expert_alignment, worst=num_worst_tokens > 0), _end(async_finish))

    def combine(  # noqa: PLR0913 (the original's)
        self,
        x: Tensor,
        handle: AnyHandle,
        topk_weights: Tensor | None = None,
        bias: Tensor | tuple[Tensor, Tensor] | None = None,
        config: Config | None = None,
        previous_event: EventOverlap | None = None,
        async_finish: bool = False,  # noqa: FBT001, FBT002
        allocate_on_comm_stream: bool = False,  # noqa: FBT001, FBT002
    ) -> tuple[Tensor, Tensor | None, EventOverlap]:
        """Sum each token's rows over the ranks that received it; no weights are applied.

        x (N, H) bfloat16, in the order of what was dispatched. topk_weights (N, K) float32 are summed likewise. bias
        (T, H) is added. Returns combined_x (T, H) bfloat16, combined_topk_weights (T, K) or None, event.
        """
        with self._telling("combine"):
            _begin(previous_event, async_finish, allocate_on_comm_stream)
            assert config is None or config.num_sms % 2 == 0, "The SM count must be even"
            check_rows(x, "x", (torch.bfloat16,))
            tokens, rows = self._ways.check_handle(handle), self._ways.rows_of(handle)
            if len(x) < rows:
                refuse("x", f"of {len(x)} rows", f"{rows} tokens have come by the dispatch of this handle")
            columns = [self._here(x)]
            if topk_weights is not None:
                check_rows(topk_weights, "topk_weights", (torch.float32,), alignment=4)
                if len(topk_weights) != len(x):
                    refuse("topk_weights", f"of {len(topk_weights)} rows", f"x has {len(x)}")
                columns.append(self._here(topk_weights))
            biases = [self._here(each) for each in check_biases(bias, (tokens, x.shape[1]))]
        combined = [each.to(x.device) for each in self._ways.combine(columns, handle, biases)]
        return combined[0], combined[1] if len(combined) > 1 else None, _end(async_finish)

    def internode_dispatch(self, *arguments: Any, **options: Any) -> Any:
        """`dispatch`, which chooses by the number of nodes."""
        return self.dispatch(*arguments, **options)

    def internode_combine(self, *arguments: Any, **options: Any) -> Any:
        """`combine`, which chooses by the number of nodes."""
        return self.combine(*arguments, **options)

    # -- parts --

    def _open(self, members: Members, num_bytes: int, **options: Any) -> Transport:
        return open_transport(members, num_bytes, **options)

    @contextmanager
    def _telling(self, call: str) -> Iterator[None]:
        """Arguments are looked at inside. If they are refused, the others learn it where they wait for this rank."""
        try:
            yield
        except (ValueError, TypeError, AssertionError) as error:
            self._ways.refuse(refused(error, rank=self.rank, phase=f"{call}: arguments"))
            raise

    def _here(self, x: Tensor) -> Tensor:
        return x.to(self.transport.device)

    def _routing(
        self,
        tokens: Tokens,
        per_rank: Tensor | None,
        per_node: Tensor | None,
        is_token_in_rank: Tensor | None,
        per_expert: Tensor | None,
    ) -> Tensor:
        """Which token goes to which rank."""
        assert per_rank is not None, "without a handle, give num_tokens_per_rank"
        assert is_token_in_rank is not None, "without a handle, give is_token_in_rank"
        assert per_expert is not None, "without a handle, give num_tokens_per_expert"
        if self.num_nodes > 1:
            assert per_node is not None, "several nodes: give num_tokens_per_rdma_rank"
        member = self._here(is_token_in_rank)
        self._check_layout(len(tokens.x), member, per_rank, per_expert)
        if tokens.topk_idx is not None:
            layout.check_indices(tokens.topk_idx, len(per_expert))
        return member

    def _check_layout(self, tokens: int, member: Tensor, per_rank: Tensor, per_expert: Tensor) -> None:
        ranks = self.group_size
        if member.dtype != torch.bool or tuple(member.shape) != (tokens, ranks) or not member.is_contiguous():
            refuse("is_token_in_rank", f"{member.dtype} of shape {tuple(member.shape)}",
                   f"it must be a contiguous torch.bool of shape {(tokens, ranks)}")  # fmt: skip
        for name, counts, length in (
            ("num_tokens_per_rank", per_rank, ranks),
            ("num_tokens_per_expert", per_expert, None),
        ):
            if (
                counts.dtype != torch.int32
                or counts.dim() != 1
                or (length is not None and len(counts) != length)
            ):
                refuse(
                    name,
                    f"{counts.dtype} of shape {tuple(counts.shape)}",
                    "give what get_dispatch_layout returned",
                )
        layout.check_experts(len(per_expert), ranks)
        if len(per_expert) > EXPERTS_PER_RANK_MAX * ranks:
            refuse("num_experts", len(per_expert), f"a rank has at most {EXPERTS_PER_RANK_MAX}")
        if self.transport.device.type == "cpu" and not torch.equal(
            member.sum(0, dtype=torch.int32), per_rank.cpu()
        ):
            refuse("num_tokens_per_rank", per_rank.tolist(), "is_token_in_rank says otherwise")


def _members(group: dist.ProcessGroup | None, comm: Any, node_size: int | None) -> Members:
    """The ranks. Those of different nodes of `node_size` are not to share memory, even if they are on one host."""
    rank = int(comm.Get_rank()) if group is None else group.rank()
    node = None if node_size is None else rank // node_size
    return CommMembers(comm, node=node) if group is None else GroupMembers(group, node=node)


def node_size(members: Members, wanted: int | None) -> int:
    """Ranks of a node: those of a host, if hosts have equally many, one after the other."""
    ranks = members.size
    hosts = members.gather(members.host)
    size = wanted or hosts.count(hosts[0])
    if wanted is not None and ranks % size:
        refuse("ranks_per_node", size, f"it must divide the {ranks} ranks")
    in_order = all(len(set(hosts[start : start + size])) == 1 for start in range(0, ranks, size))
    if size == 1 or (wanted is None and (ranks % size or not in_order or len(set(hosts)) != ranks // size)):
        return ranks  # one hop is all there is
    return size


def _begin(previous_event: EventOverlap | None, async_finish: bool, allocate_on_comm_stream: bool) -> None:  # noqa: FBT001
    if allocate_on_comm_stream:
        assert previous_event is not None and async_finish, (  # noqa: PT018
            "allocate_on_comm_stream needs previous_event and async_finish"
        )
    if previous_event is not None and previous_event.event is not None:
        previous_event.current_stream_wait()


def _end(async_finish: bool) -> EventOverlap:  # noqa: FBT001
    return EventOverlap(EventHandle() if async_finish else None)


def _results(
    received: Received, home: torch.device, alignment: int, *, worst: bool
) -> tuple[Tensor | tuple[Tensor, Tensor], Tensor | None, Tensor | None, list[int], AnyHandle]:
    tokens = received.tokens
    counts = [] if worst else [-(-each // alignment) * alignment for each in received.expert_counts]
    idx, weights = (
        None if each is None else each.to(home) for each in (tokens.topk_idx, tokens.topk_weights)
    )
    return _pair(tokens, home), idx, weights, counts, received.handle


def _pair(tokens: Tokens, home: torch.device) -> Tensor | tuple[Tensor, Tensor]:
    x = tokens.x.to(home)
    return x if tokens.scales is None else (x, tokens.scales.to(home))


def _device(device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


__all__ = ["Buffer", "topk_idx_t"]
