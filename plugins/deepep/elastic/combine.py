"""Rows back to their tokens: summed for each token on the rank that has them, then over ranks.

What comes back from a rank counts at the last of a token's k that the rank owns, and is summed in the order of k, in
float32, after the biases. The sum of a rank's own rows is rounded to the rows' type on the way, unless each of them
travels by itself.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...kernels.errors import BadCall
from .. import moves
from ..exchange import Exchange
from ..notes import Fact
from . import routing, sums
from .handle import EPHandle


def run(  # noqa: PLR0913 (what a combine has)
    exchange: Exchange,
    x: Tensor,
    topk_weights: Tensor | None,
    handle: EPHandle,
    bias: Sequence[Tensor],
    before_epilogue: Callable[[], None],
    *,
    reduce_first: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Sums (T, H) and weights (T, K). Tensors are on the transport's device.

    Shapes: x (rows of the dispatch, H); topk_weights (rows, K), of expanded rows (rows,). `reduce_first`: rows of one
    token are summed before they travel.
    """
    device = x.device
    idx = handle.topk_idx.to(device)
    sources, places = _came(handle, device)
    columns = [x[: len(sources)]]
    if handle.do_expand and reduce_first:
        columns = [sums.add(x, places)]
    elif handle.do_expand:
        tokens, ks = torch.nonzero(places >= 0, as_tuple=True)
        row, order = places[tokens, ks].sort()
        columns, sources = [_rows(x, row)], sources[tokens][order]
    if topk_weights is not None:
        columns.append(_weights(topk_weights, places, expanded=handle.do_expand)[: len(sources)])
    member = sources[:, None] == torch.arange(exchange.size, device=device)
    came = exchange.deliver(
        _facts(columns, handle, reduce_first=reduce_first), columns, member, phase="elastic combine"
    )
    before_epilogue()
    owner = routing.owners(idx, handle.num_experts // exchange.size)
    if handle.do_expand and not reduce_first:
        answers = order_of_sum = routing.answers_of_experts(idx)
    else:
        answers = routing.answers(owner, routing.members(owner, exchange.size))
        order_of_sum = torch.where(routing.are_masters(owner), answers, -1)
    if len(came.columns[0]) != int((order_of_sum >= 0).sum()):
        raise BadCall(
            "the handle's topk_idx has changed since the dispatch: let it be, or give do_handle_copy=True"
        )
    combined = sums.add(came.columns[0], order_of_sum, bias=bias)
    return combined, None if topk_weights is None else _weights_back(came.columns[1], answers)


def _came(handle: EPHandle, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each token that came: its source rank (N,), and its expanded rows (N, K)."""
    count = int(handle.psum_num_recv_tokens_per_scaleup_rank[-1])
    table = handle.recv_src_metadata[:count].to(device).long()
    return table[:, 0] // handle.num_max_tokens_per_rank, table[:, 2:]


def _facts(columns: Sequence[Tensor], handle: EPHandle, *, reduce_first: bool) -> dict[str, Fact]:
    facts: dict[str, Fact] = {
        "call": "elastic combine",
        "hidden size": columns[0].shape[1],
        "handle": f"of dispatch {handle.number}",
        "rows": "of each expert" if handle.do_expand and not reduce_first else "of each rank",
    }
    if len(columns) > 1:
        facts["topk_weights"] = f"of shape (tokens, {columns[1].shape[1]})"
    return facts


def _weights(weights: Tensor, places: Tensor, *, expanded: bool) -> Tensor:
    """(N, K)."""
    if not expanded:
        return weights
    if not len(weights):
        return weights.new_zeros(places.shape)
    return torch.where(places >= 0, weights[places.clamp(min=0)], 0.0)


def _weights_back(came: Tensor, answers: Tensor) -> Tensor:
    """Each k's weight from the rank of its expert."""
    if not len(came):
        return came.new_zeros(answers.shape)
    ks = torch.arange(answers.shape[1], device=came.device)
    return torch.where(answers >= 0, came[answers.clamp(min=0), ks], 0.0)


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    out = x.new_empty(len(rows), x.shape[1])
    moves.take(out, x, rows)
    return out


__all__ = ["run"]
