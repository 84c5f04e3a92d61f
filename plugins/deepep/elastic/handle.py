"""What a dispatch of `ElasticBuffer` leaves."""

from dataclasses import dataclass

from torch import Tensor

from ..normal.tokens import Handle


@dataclass
class EPHandle:
    """For combine, and for dispatches of the same routing; the original's fields, by their names.

    topk_idx (T, K): a copy, unless `do_handle_copy=False`. psum_num_recv_tokens_per_scaleup_rank (R,) int32: rows from
    this and earlier ranks. psum_num_recv_tokens_per_expert (E_loc,) int32: of this and earlier experts, each count
    rounded up to `expert_alignment`; with `do_expand` where the real rows of the expert end, as DeepGEMM's psum layout
    has it. num_recv_tokens_per_expert_list: counts rounded up, empty without `do_cpu_sync`.
    num_unaligned_recv_tokens_per_expert (E_loc,) int32: not rounded.

    recv_src_metadata (N, K + 2) int32, a row for each token that came: 0 source rank · num_max_tokens_per_rank + token;
    1 source rank · K + the last of its k that is of this rank; 2… the row of the expanded result for each k, or -1.
    dst_buffer_slot_idx (T, K) int32: the token's number among those for the rank, at the last k that is of it, or -1.

    num_recv_tokens, num_expanded_tokens: rows of the results; without `do_cpu_sync` as many as could come.
    token_metadata_at_forward, channel_linked_list: None, as rows go directly from rank to rank.
    """

    do_expand: bool
    num_experts: int
    expert_alignment: int
    num_max_tokens_per_rank: int
    num_sms: int
    topk_idx: Tensor
    num_recv_tokens: int
    num_expanded_tokens: int
    num_recv_tokens_per_expert_list: list[int]
    psum_num_recv_tokens_per_scaleup_rank: Tensor
    psum_num_recv_tokens_per_expert: Tensor
    num_unaligned_recv_tokens_per_expert: Tensor
    recv_src_metadata: Tensor
    dst_buffer_slot_idx: Tensor
    rows: Handle
    """Of the same dispatch, without expansion."""
    owner: Tensor
    """(T, K): the rank of each expert, or -1."""
    token_metadata_at_forward: Tensor | None = None
    channel_linked_list: Tensor | None = None
    number: int = 0
    """Of the dispatch: ranks that combine with handles of different ones learn it."""


__all__ = ["EPHandle"]
