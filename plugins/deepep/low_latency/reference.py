"""Low-latency mode as loops over tokens, given the inputs of all ranks in one process: the specification.

received = dispatch(xs, topks, max_tokens=128, experts=288)
combined = combine([r.rows for r in received], received, topks, weights)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .layout import Received
from .quantize import cast_to_fp8, from_logfmt, to_logfmt


def dispatch(  # noqa: PLR0913 (one call's options)
    xs: Sequence[Tensor], topks: Sequence[Tensor], *, max_tokens: int, experts: int, fp8: bool = False,
    round_scale: bool = False, use_ue8m0: bool = False,
) -> list[Received]:  # fmt: skip
    """What each rank receives; rows beyond the counts are zero.

    Shapes: for each rank xs (T, H) bfloat16 and topks (T, K); -1 for no expert.
    """
    ranks, local = len(xs), experts // len(xs)
    cast = [cast_to_fp8(x, round_scale=round_scale, use_ue8m0=use_ue8m0) if fp8 else (x, None) for x in xs]
    results = []
    for rank in range(ranks):
        values, scales = cast[0]
        rows = torch.zeros(local, ranks * max_tokens, values.shape[1]).to(values.dtype)
        row_scales = None
        if scales is not None:
            row_scales = torch.zeros(local, ranks * max_tokens, scales.shape[1], dtype=scales.dtype)
        counts = torch.zeros(local, dtype=torch.int32)
        tokens = torch.zeros(local, ranks * max_tokens, dtype=torch.int32)
        ranges = torch.zeros(local, ranks, dtype=torch.int64)
        for expert in range(local):
            line = 0
            for source in range(ranks):
                begin = line
                for token, _ in (topks[source] == rank * local + expert).nonzero().tolist():
                    rows[expert, line] = cast[source][0][token]
                    its_scales = cast[source][1]
                    if row_scales is not None and its_scales is not None:
                        row_scales[expert, line] = its_scales[token]
                    tokens[expert, line] = token
                    line += 1
                ranges[expert, source] = begin << 32 | line - begin
            counts[expert] = line
        results.append(Received(rows, row_scales, counts, tokens, ranges))
    return results


def combine(
    rows: Sequence[Tensor], received: Sequence[Received], topks: Sequence[Tensor], weights: Sequence[Tensor], *,
    logfmt: bool = False,
) -> list[Tensor]:  # fmt: skip
    """Shapes: for each rank rows (e, R · N, H) bfloat16, topks and weights (T, K); results (T, H) bfloat16."""
    ranks, local = len(rows), rows[0].shape[0]
    results = []
    for rank in range(ranks):
        total = torch.zeros(topks[rank].shape[0], rows[0].shape[2])
        for token, chosen in enumerate(topks[rank].tolist()):
            for k, expert in enumerate(chosen):
                if expert < 0:
                    continue
                owner, index = divmod(expert, local)
                found = received[owner]
                begin, count = divmod(int(found.ranges[index, rank]), 1 << 32)
                mine = found.source_tokens[index, begin : begin + count] == token
                line = begin + int(mine.nonzero()[0])
                part = rows[owner][index, line]
                value = from_logfmt(*to_logfmt(part[None]))[0] if logfmt else part.float()
                total[token] += weights[rank][token, k] * value
        results.append(total.to(torch.bfloat16))
    return results


__all__ = ["combine", "dispatch"]
