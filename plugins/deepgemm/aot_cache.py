"""Kernels compiled ahead of time into a cache directory that many machines share.

A line names a call and its sizes; several values of a size are separated by commas, and all combinations are compiled:

    fp8_gemm_nt m=1,64,4096 n=4096 k=7168
    m_grouped_fp8_gemm_nt_masked groups=8 max_m=4096 expected_m=32 n=4096 k=7168

The directory is Triton's cache: entries have a key of the source, the constants, the types, Triton's and the
assembler's version and the target, and appear by rename, so that many processes may fill one directory on a shared file
system at once. Sizes that only change from call to call (m) are no part of it beyond the tile that is chosen for them.
"""

import inspect
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ..kernels.errors import BadArgument, refuse
from ..kernels.layers import MULTIPROCESSORS
from ..kernels.quantize import BLOCK, FP8, ceil_div
from . import activations, einsums, indexer, prenorm
from .gemm import dense, grouped
from .scales import get_tma_aligned_size


@dataclass(frozen=True)
class Call:
    """One operator with its sizes."""

    operator: str
    sizes: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return " ".join([self.operator, *(f"{name}={value}" for name, value in self.sizes)])


@dataclass(frozen=True)
class Warmed:
    """What compiling one call gave: the kernels' names, and how many were in the cache before."""

    call: str
    kernels: tuple[str, ...]
    cached: int


def set_cache_dir(directory: str | Path) -> None:
    """Triton keeps compiled kernels there from now on, for all of its users in this process.

    A directory on a mount of a cluster is shared by all its clients. TRITON_CACHE_DIR does the same from outside.
    Raises: OSError if it cannot be made.
    """
    from triton import knobs

    path = Path(directory).absolute()
    path.mkdir(parents=True, exist_ok=True)
    knobs.cache.dir = str(path)


def parse(lines: Iterable[str]) -> list[Call]:
    """Calls of a list of shapes; "#" begins a comment.

    Raises: BadArgument that names the line.
    """
    calls: list[Call] = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if words:
            try:
                calls += _expand(words[0], words[1:])
            except BadArgument as error:
                raise BadArgument(f"line {number}: {error}") from error
    return calls


def warm(
    calls: list[Call], cache_dir: str | Path, *, layer: str | None = None, jobs: int = 1
) -> Iterator[Warmed]:
    """Compiles the calls' kernels for Hopper in `jobs` processes; yields in the order of `calls`.

    `layer`: whose kernels; None for those that a Hopper card takes by default.

    Raises: RuntimeError if a call does not compile.
    """
    if jobs < 1:
        refuse("jobs", jobs, "it must be positive")
    # Processes of their own: one that interprets kernels, or uses a GPU, can warm a cache too.
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_begin, initargs=(str(cache_dir),)
    ) as pool:
        yield from pool.map(_compile, calls, itertools.repeat(layer))


def compile_call(call: Call, *, layer: str | None = None) -> list[Any]:
    """The compiled kernels of one call, in this process, by Triton's current cache directory."""
    from ..kernels.aot import compiling
    from ..kernels.layers import using_layer

    with compiling() as kernels, using_layer(layer) if layer else nullcontext():
        _CALLS[call.operator](**dict(call.sizes))
    return kernels


def operators() -> dict[str, tuple[str, ...]]:
    """Names of operators that can be warmed, with their sizes."""
    return {name: tuple(inspect.signature(call).parameters) for name, call in _CALLS.items()}


def _begin(cache_dir: str) -> None:
    # Triton reads this when it is imported, which has not happened here yet.
    os.environ.pop("TRITON_INTERPRET", None)
    assert "triton" not in sys.modules, "importing the operators does not import Triton"
    set_cache_dir(cache_dir)


def _compile(call: Call, layer: str | None) -> Warmed:
    from triton import knobs

    hits: list[bool] = []
    before = knobs.compilation.listener
    knobs.compilation.listener = lambda *, cache_hit, **_details: hits.append(cache_hit)
    try:
        kernels = compile_call(call, layer=layer)
    finally:
        knobs.compilation.listener = before
    return Warmed(
        str(call), tuple(each.metadata.name for each in kernels), cached=len(kernels) - hits.count(False)
    )


def _expand(operator: str, words: list[str]) -> list[Call]:
    if operator not in _CALLS:
        refuse("operator", operator, f"it must be one of {', '.join(sorted(_CALLS))}")
    names = operators()[operator]
    given: dict[str, list[int]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        if not equals or name not in names or name in given:
            refuse("size", word, f"{operator} takes {' '.join(f'{each}=…' for each in names)}, each once")
        given[name] = [_size(name, value) for value in values.split(",")]
    missing = [name for name in names if name not in given]
    if missing:
        raise BadArgument(f"{operator} lacks {', '.join(missing)}")
    return [
        Call(operator, tuple(zip(names, values, strict=True)))
        for values in itertools.product(*(given[name] for name in names))
    ]


def _size(name: str, value: str) -> int:
    if not value.isdecimal() or not 0 < int(value) < 1 << 31:
        refuse(name, repr(value), "it must be a positive number below 2^31")
    return int(value)


def _meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _tokens(m: int, k: int) -> tuple[Tensor, Tensor]:
    columns = ceil_div(k, BLOCK)
    scales = torch.empty_strided(
        (m, columns), (1, get_tma_aligned_size(m, 4)), dtype=torch.float32, device="meta"
    )
    return _meta(m, k, dtype=FP8), scales


def _weights(*shape: int) -> tuple[Tensor, Tensor]:
    *groups, n, k = shape
    return _meta(*shape, dtype=FP8), _meta(
        *groups, ceil_div(n, BLOCK), ceil_div(k, BLOCK), dtype=torch.float32
    )


def _fp8_gemm_nt(m: int, n: int, k: int) -> None:
    dense.fp8_gemm_nt(_tokens(m, k), _weights(n, k), _meta(m, n, dtype=torch.bfloat16))


def _fp8_gemm_nt_accumulate(m: int, n: int, k: int) -> None:
    d = _meta(m, n, dtype=torch.float32)
    dense.fp8_gemm_nt(_tokens(m, k), _tokens(n, k), d, d, recipe=dense.RECIPE_ROWS)


def _bf16(form: str) -> Callable[..., None]:
    def call(m: int, n: int, k: int) -> None:
        a = _meta(*((k, m) if form[0] == "t" else (m, k)), dtype=torch.bfloat16)
        b = _meta(*((k, n) if form[1] == "n" else (n, k)), dtype=torch.bfloat16)
        getattr(dense, f"bf16_gemm_{form}")(a, b, _meta(m, n, dtype=torch.bfloat16))

    return call


def _fp8_contiguous(groups: int, m: int, n: int, k: int) -> None:
    d, layout = _meta(m, n, dtype=torch.bfloat16), _meta(m, dtype=torch.int32)
    grouped.m_grouped_fp8_gemm_nt_contiguous(_tokens(m, k), _weights(groups, n, k), d, layout)


def _fp8_ends(groups: int, m: int, n: int, k: int) -> None:
    d, ends = _meta(m, n, dtype=torch.bfloat16), _meta(groups, dtype=torch.int32)
    grouped.m_grouped_fp8_gemm_nt_contiguous(
        _tokens(m, k), _weights(groups, n, k), d, ends, use_psum_layout=True
    )


def _bf16_contiguous(form: str) -> Callable[..., None]:
    def call(groups: int, m: int, n: int, k: int) -> None:
        a, d, layout = _tokens_and_results(m, n, k)
        b = _meta(groups, *((k, n) if form == "nn" else (n, k)), dtype=torch.bfloat16)
        getattr(grouped, f"m_grouped_bf16_gemm_{form}_contiguous")(a, b, d, layout)

    return call


def _bf16_ends(groups: int, m: int, n: int, k: int) -> None:
    a, d, _ = _tokens_and_results(m, n, k)
    b, ends = _meta(groups, n, k, dtype=torch.bfloat16), _meta(groups, dtype=torch.int32)
    grouped.m_grouped_bf16_gemm_nt_contiguous(a, b, d, ends, use_psum_layout=True)


def _tokens_and_results(m: int, n: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    return _meta(m, k, dtype=torch.bfloat16), _meta(m, n, dtype=torch.bfloat16), _meta(m, dtype=torch.int32)


def _fp8_masked(groups: int, max_m: int, expected_m: int, n: int, k: int) -> None:
    scales = _meta(groups, ceil_div(k, BLOCK), get_tma_aligned_size(max_m, 4), dtype=torch.float32)
    a = (_meta(groups, max_m, k, dtype=FP8), scales.mT[:, :max_m])
    d, masked_m = _meta(groups, max_m, n, dtype=torch.bfloat16), _meta(groups, dtype=torch.int32)
    grouped.m_grouped_fp8_gemm_nt_masked(a, _weights(groups, n, k), d, masked_m, expected_m)


def _bf16_masked(groups: int, max_m: int, expected_m: int, n: int, k: int) -> None:
    a, b = _meta(groups, max_m, k, dtype=torch.bfloat16), _meta(groups, n, k, dtype=torch.bfloat16)
    d, masked_m = _meta(groups, max_m, n, dtype=torch.bfloat16), _meta(groups, dtype=torch.int32)
    grouped.m_grouped_bf16_gemm_nt_masked(a, b, d, masked_m, expected_m)


def _fp8_k_grouped(groups: int, m: int, n: int, k: int) -> None:
    d, ks = _meta(groups, m, n, dtype=torch.float32), [k] * groups
    a, b = (
        (_meta(rows * sum(ks), dtype=FP8), _meta(sum(ks) // BLOCK, rows, dtype=torch.float32).T)
        for rows in (m, n)
    )
    grouped.k_grouped_fp8_gemm_nt_contiguous(a, b, d, ks, _meta(groups, dtype=torch.int32), d)


def _bf16_k_grouped(groups: int, m: int, n: int, k: int) -> None:
    d, ks = _meta(groups, m, n, dtype=torch.float32), [k] * groups
    a, b = (_meta(sum(ks), rows, dtype=torch.bfloat16) for rows in (m, n))
    grouped.k_grouped_bf16_gemm_tn_contiguous(a, b, d, ks, _meta(groups, dtype=torch.int32), d)


def _einsum(expr: str) -> Callable[..., None]:
    def call(b: int, h: int, r: int, d: int) -> None:
        sizes = {"b": b, "h": h, "r": r, "d": d}
        left, right, result = (
            [sizes[letter] for letter in letters] for letters in expr.replace("->", ",").split(",")
        )
        dtype = torch.float32 if result[0] == h else torch.bfloat16
        a, b_ = (_meta(*each, dtype=torch.bfloat16) for each in (left, right))
        einsums.einsum(expr, a, b_, _meta(*result, dtype=dtype))

    return call


def _einsum_of_batches(b: int, m: int, n: int, k: int) -> None:
    left, right = (_meta(b, rows, k, dtype=torch.bfloat16) for rows in (m, n))
    einsums.einsum("bmk,bnk->mn", left, right, _meta(m, n, dtype=torch.bfloat16))


def _fp8_einsum(b: int, h: int, r: int, d: int) -> None:
    values = _meta(b, h, r, dtype=FP8), _meta(b, h, ceil_div(r, BLOCK), dtype=torch.float32)
    einsums.fp8_einsum(
        einsums.FP8_EXPRESSION, values, _weights(h, d, r), _meta(b, h, d, dtype=torch.bfloat16)
    )


def _prenorm(m: int, n: int, k: int, num_splits: int) -> None:
    a, b = _meta(m, k, dtype=torch.bfloat16), _meta(n, k, dtype=torch.float32)
    d, squares = (_meta(num_splits, *shape, dtype=torch.float32) for shape in ((m, n), (m,)))
    prenorm.tf32_hc_prenorm_gemm(a, b, d, squares, num_splits)


def _quantize(m: int, n: int) -> None:
    activations.quantize_activations(_meta(m, n, dtype=torch.bfloat16))


def _mqa_logits(s: int, tokens: int, heads: int, d: int) -> None:
    kv = (_meta(tokens, d, dtype=FP8), _meta(tokens, dtype=torch.float32))
    ends = _meta(s, dtype=torch.int32)
    indexer.fp8_mqa_logits(
        _meta(s, heads, d, dtype=FP8), kv, _meta(s, heads, dtype=torch.float32), ends, ends
    )


def _paged_mqa_logits(b: int, next_n: int, heads: int, d: int, max_context_len: int) -> None:
    lengths = _meta(b, next_n, dtype=torch.int32)
    page = 64
    cache = _meta(max(2, ceil_div(max_context_len, page)), page, 1, d + 4, dtype=torch.uint8)
    table = _meta(b, ceil_div(max_context_len, page), dtype=torch.int32)
    schedule = indexer.get_paged_mqa_logits_metadata(lengths, page, MULTIPROCESSORS)
    q, weights = _meta(b, next_n, heads, d, dtype=FP8), _meta(b * next_n, heads, dtype=torch.float32)
    indexer.fp8_paged_mqa_logits(q, cache, weights, lengths, table, schedule, max_context_len)


_CALLS: Final[dict[str, Callable[..., Any]]] = {
    "fp8_gemm_nt": _fp8_gemm_nt,
    "fp8_gemm_nt_accumulate": _fp8_gemm_nt_accumulate,
    **{f"bf16_gemm_{form}": _bf16(form) for form in ("nt", "nn", "tn", "tt")},
    "m_grouped_fp8_gemm_nt_contiguous": _fp8_contiguous,
    "m_grouped_fp8_gemm_nt_contiguous_psum": _fp8_ends,
    "m_grouped_fp8_gemm_nt_masked": _fp8_masked,
    **{f"m_grouped_bf16_gemm_{form}_contiguous": _bf16_contiguous(form) for form in ("nt", "nn")},
    "m_grouped_bf16_gemm_nt_contiguous_psum": _bf16_ends,
    "m_grouped_bf16_gemm_nt_masked": _bf16_masked,
    "k_grouped_fp8_gemm_nt_contiguous": _fp8_k_grouped,
    "k_grouped_bf16_gemm_tn_contiguous": _bf16_k_grouped,
    "einsum_bmk_bnk_mn": _einsum_of_batches,
    **{
        f"einsum_{expr.replace(',', '_').replace('->', '_')}": _einsum(expr)
        for expr in ("bhr,hdr->bhd", "bhd,hdr->bhr", "bhd,bhr->hdr")
    },
    "fp8_einsum_bhr_hdr_bhd": _fp8_einsum,
    "tf32_hc_prenorm_gemm": _prenorm,
    "quantize_activations": _quantize,
    "fp8_mqa_logits": _mqa_logits,
    "fp8_paged_mqa_logits": _paged_mqa_logits,
}

__all__ = ["Call", "Warmed", "compile_call", "operators", "parse", "set_cache_dir", "warm"]
