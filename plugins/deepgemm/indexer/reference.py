"""The specification of the indexer's logits in plain torch: float32 arithmetic, any device."""

import torch
from torch import Tensor

from .call import PAGE_TOKENS, PIECE_TOKENS, Logits, PagedLogits


def mqa_logits(call: Logits) -> None:
    """Fill the logits; compressed ones at column j - start."""
    total = scores(call.q, call.kv, call.sf, call.weights)
    tokens = torch.arange(call.kv.shape[0], device=call.q.device)
    visible = (tokens >= call.starts[:, None]) & (tokens < call.ends[:, None])
    logits = call.logits
    if call.compressed:
        rows, columns = visible.nonzero(as_tuple=True)
        places = columns - call.starts[rows].clamp(min=0)
        inside = places < logits.shape[1]
        logits[rows[inside], places[inside]] = total[rows[inside], columns[inside]].to(logits.dtype)
        return
    logits[visible] = total[visible].to(logits.dtype)
    if call.clean:
        logits[~visible] = float("-inf")


def paged_mqa_logits(call: PagedLogits) -> None:
    """Fill the logits up to each query's length."""
    b, next_n = call.lengths.shape
    values, scales = unpack(call.cache)
    for request in range(b):
        for token in range(next_n):
            row = request * next_n + token
            length = min(int(call.lengths[request, token]), call.logits.shape[1])
            if length <= 0:
                continue
            pages = call.table[request, : -(-length // PAGE_TOKENS)].long()
            known = (pages >= 0) & (pages < values.shape[0])
            pages = pages.clamp(0, values.shape[0] - 1)
            keys, sf = values[pages].flatten(0, 1)[:length], scales[pages].flatten()[:length]
            total = scores(call.q[request, token : token + 1], keys, sf, call.weights[row : row + 1])[0]
            seen = known.repeat_interleave(PAGE_TOKENS)[:length]
            call.logits[row, :length][seen] = total[seen].to(call.logits.dtype)


def paged_metadata(context_lens: Tensor, schedule: Tensor) -> None:
    """Fill schedule (programs + 1, 2) for requests of context_lens (b,) tokens."""
    pieces = [-(-length // PIECE_TOKENS) for length in context_lens.tolist()]
    programs, total = schedule.shape[0] - 1, sum(pieces)
    order = [(row, piece) for row, count in enumerate(pieces) for piece in range(count)] + [(len(pieces), 0)]
    share, rest = divmod(total, programs)
    starts = [order[min(program * share + min(program, rest), total)] for program in range(programs + 1)]
    schedule.copy_(torch.tensor(starts, dtype=torch.int32))


def scores(q: Tensor, kv: Tensor, sf: Tensor, weights: Tensor) -> Tensor:
    """Sum over heads of relu(q · kv) · weight, times the token's scale, for all pairs of query and token.

    Shapes: q (s, heads, d) e4m3, kv (tokens, d) e4m3, sf (tokens,) float32, weights (s, heads) float32;
    result (s, tokens) float32.
    """
    scores = torch.einsum("shd,td->sht", q.float(), kv.float()).relu_()
    return torch.einsum("sht,sh->st", scores, weights.float()) * sf


def unpack(cache: Tensor) -> tuple[Tensor, Tensor]:
    """Values and scales of a paged indexer cache: each block holds all its values first, then all its scales.

    Shapes: cache (blocks, block, 1, d + 4) uint8; results (blocks, block, d) e4m3 and (blocks, block) float32.
    """
    blocks, block, _, width = cache.shape
    flat = cache.reshape(blocks, block * width)
    split = block * (width - 4)
    values = flat[:, :split].view(torch.float8_e4m3fn).view(blocks, block, width - 4)
    return values, flat[:, split:].contiguous().view(torch.float32)


__all__ = ["mqa_logits", "paged_metadata", "paged_mqa_logits", "scores", "unpack"]
