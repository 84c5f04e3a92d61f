"""Gradients of the plain attention: Triton kernels. `launch.varlen_backward` calls them.

With S the logits, P = exp(S - lse) and D the sum of a row's gradient times its output, which `attention_sums_kernel`
computes first:

    dV = Pᵀ · dO        dS = P * (dO · Vᵀ - D) * scale        dQ = dS · K        dK = dSᵀ · Q

    I1  each number of a gradient is added up by one program, in one order: the same every time, without atomics
    I2  P is that of the forward pass, made again from its log-sum-exp; +inf, of a query that sees nothing, makes zeros
    I3  the products of dK and dV have tokens as rows, so that P and dS go from registers into them

Source: Dao 2023, "FlashAttention-2", algorithm 2; checked against `reference.varlen_backward`.
"""

import triton
import triton.language as tl

from .kernel import _INF, _LOG2E, _ROPE, _dot, _rows, narrow


@triton.jit
def _store_rows(
    start, at, inside, values, FIRST: tl.constexpr, WIDTH: tl.constexpr, STRIDE: tl.constexpr, heads
):
    column = FIRST + tl.arange(0, WIDTH)
    places = (at * heads)[:, None] * STRIDE + column[None, :]
    tl.store(start + places, narrow(values, start.dtype.element_ty), mask=inside[:, None])


@triton.jit
def attention_sums_kernel(
    grad, out, sums, stride_g_s, stride_g_h, total, h_q, BLOCK_M: tl.constexpr
):  # fmt: skip
    """D of each row. Grid: row tiles, heads."""
    head = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = at < total
    mine = _rows(grad + head * stride_g_h, at, stride_g_s, inside, 0, 128).to(tl.float32)
    theirs = _rows(out + head * 128, at, h_q * 128, inside, 0, 128).to(tl.float32)
    tl.store(sums + head * total + at, tl.sum(mine * theirs, 1), mask=inside)


@triton.jit
def flash_bwd_varlen_queries_kernel(
    q, k, v, grad, lse, sums, starts_q, starts_kv, dq,
    stride_q_s, stride_q_h, stride_k_s, stride_k_h, stride_v_s, stride_v_h, stride_g_s, stride_g_h,
    total_q, h_q, group, tiles, scale,
    HAS_ROPE: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dQ. Grid: query tiles × sequences, heads."""
    tile, sequence = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    head = tl.program_id(1).to(tl.int64)
    begin, begin_kv = tl.load(starts_q + sequence), tl.load(starts_kv + sequence)
    queries, tokens = tl.load(starts_q + sequence + 1) - begin, tl.load(starts_kv + sequence + 1) - begin_kv
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    if tile * BLOCK_M < queries:
        inside = row < queries
        at = (begin + row).to(tl.int64)
        mine = q + head * stride_q_h
        q_main = _rows(mine, at, stride_q_s, inside, 0, 128)
        q_rope = q_main
        if HAS_ROPE:
            q_rope = _rows(mine, at, stride_q_s, inside, 128, _ROPE)
        g = _rows(grad + head * stride_g_h, at, stride_g_s, inside, 0, 128)
        lse2 = tl.load(lse + head * total_q + at, mask=inside, other=_INF) * _LOG2E
        less = tl.load(sums + head * total_q + at, mask=inside, other=0.0)
        acc = tl.zeros((BLOCK_M, 128), dtype=tl.float32)
        acc_rope = tl.zeros((BLOCK_M, _ROPE), dtype=tl.float32)
        end, seen = tokens, tokens + 0 * row
        if CAUSAL:
            seen = tokens - queries + 1 + row
            end = tl.minimum(tokens, tokens - queries + (tile + 1) * BLOCK_M)
        k_head, v_head = k + head // group * stride_k_h, v + head // group * stride_v_h
        for n in tl.range(0, end, BLOCK_N, num_stages=STAGES):
            token = n + tl.arange(0, BLOCK_N)
            valid = token < tokens
            token_at = (begin_kv + token).to(tl.int64)
            k_main = _rows(k_head, token_at, stride_k_s, valid, 0, 128)
            values = _rows(v_head, token_at, stride_v_s, valid, 0, 128)
            zeros = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
            s = _dot(q_main, tl.trans(k_main), zeros)
            if HAS_ROPE:
                k_rope = _rows(k_head, token_at, stride_k_s, valid, 128, _ROPE)
                s = _dot(q_rope, tl.trans(k_rope), s)
            dp = _dot(g, tl.trans(values), zeros)
            visible = valid[None, :] & (token[None, :] < seen[:, None])
            p = tl.where(visible, tl.exp2(s * (scale * _LOG2E) - lse2[:, None]), 0.0)
            ds = narrow(p * (dp - less[:, None]), q_main.dtype)
            acc = _dot(ds, k_main, acc)
            if HAS_ROPE:
                acc_rope = _dot(ds, k_rope, acc_rope)
        width: tl.constexpr = 192 if HAS_ROPE else 128
        _store_rows(dq + head * width, at, inside, acc * scale, 0, 128, width, h_q)
        if HAS_ROPE:
            _store_rows(dq + head * width, at, inside, acc_rope * scale, 128, _ROPE, width, h_q)


@triton.jit
def flash_bwd_varlen_tokens_kernel(
    q, k, v, grad, lse, sums, starts_q, starts_kv, dk, dv,
    stride_q_s, stride_q_h, stride_k_s, stride_k_h, stride_v_s, stride_v_h, stride_g_s, stride_g_h,
    total_q, h_kv, group, tiles, scale,
    HAS_ROPE: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dK and dV. Grid: token tiles × sequences, KV heads. A program goes through all heads of its group."""
    tile, sequence = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    kv_head = tl.program_id(1).to(tl.int64)
    begin, begin_kv = tl.load(starts_q + sequence), tl.load(starts_kv + sequence)
    queries, tokens = tl.load(starts_q + sequence + 1) - begin, tl.load(starts_kv + sequence + 1) - begin_kv
    token = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    if tile * BLOCK_N < tokens:
        valid = token < tokens
        token_at = (begin_kv + token).to(tl.int64)
        k_head = k + kv_head * stride_k_h
        k_main = _rows(k_head, token_at, stride_k_s, valid, 0, 128)
        k_rope = k_main
        if HAS_ROPE:
            k_rope = _rows(k_head, token_at, stride_k_s, valid, 128, _ROPE)
        values = _rows(v + kv_head * stride_v_h, token_at, stride_v_s, valid, 0, 128)
        acc_k = tl.zeros((BLOCK_N, 128), dtype=tl.float32)
        acc_rope = tl.zeros((BLOCK_N, _ROPE), dtype=tl.float32)
        acc_v = tl.zeros((BLOCK_N, 128), dtype=tl.float32)
        start, hidden = 0, 0 * token
        if CAUSAL:  # queries before these do not see the tokens
            hidden = token - (tokens - queries)
            start = tl.maximum(tile * BLOCK_N - (tokens - queries), 0) // BLOCK_M * BLOCK_M
        for member in range(group):
            head = kv_head * group + member
            mine, g_head = q + head * stride_q_h, grad + head * stride_g_h
            for m in tl.range(start, queries, BLOCK_M, num_stages=STAGES):
                row = m + tl.arange(0, BLOCK_M)
                inside = row < queries
                at = (begin + row).to(tl.int64)
                q_main = _rows(mine, at, stride_q_s, inside, 0, 128)
                g = _rows(g_head, at, stride_g_s, inside, 0, 128)
                lse2 = tl.load(lse + head * total_q + at, mask=inside, other=_INF) * _LOG2E
                less = tl.load(sums + head * total_q + at, mask=inside, other=0.0)
                zeros = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
                s = _dot(k_main, tl.trans(q_main), zeros)
                if HAS_ROPE:
                    q_rope = _rows(mine, at, stride_q_s, inside, 128, _ROPE)
                    s = _dot(k_rope, tl.trans(q_rope), s)
                dp = _dot(values, tl.trans(g), zeros)
                visible = valid[:, None] & (row[None, :] >= hidden[:, None])
                p = tl.where(visible, tl.exp2(s * (scale * _LOG2E) - lse2[None, :]), 0.0)
                acc_v = _dot(narrow(p, g.dtype), g, acc_v)
                ds = narrow(p * (dp - less[None, :]), q_main.dtype)
                acc_k = _dot(ds, q_main, acc_k)
                if HAS_ROPE:
                    acc_rope = _dot(ds, q_rope, acc_rope)
        width: tl.constexpr = 192 if HAS_ROPE else 128
        _store_rows(dv + kv_head * 128, token_at, valid, acc_v, 0, 128, 128, h_kv)
        _store_rows(dk + kv_head * width, token_at, valid, acc_k * scale, 0, 128, width, h_kv)
        if HAS_ROPE:
            _store_rows(dk + kv_head * width, token_at, valid, acc_rope * scale, 128, _ROPE, width, h_kv)


__all__ = ["attention_sums_kernel", "flash_bwd_varlen_queries_kernel", "flash_bwd_varlen_tokens_kernel"]
