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
from functools import partial
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
from .indexer.call import PAGE_TOKENS
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
    """Let Triton keep compiled kernels there from now on, for all of its users in this process.

    A directory on a mount of a cluster is shared by all its clients. TRITON_CACHE_DIR does the same from outside.
    Raises: OSError if it cannot be made.
    """
    from triton import knobs

    path = Path(directory).absolute()
    path.mkdir(parents=True, exist_ok=True)
    knobs.cache.dir = str(path)


def parse(lines: Iterable[str]) -> list[Call]:
    """Parse the calls of a list of shapes; "#" begins a comment.

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
    """Compile the calls' kernels for Hopper in `jobs` processes; yield in the order of `calls`.

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
    """Compile the kernels of one call, in this process, by Triton's current cache directory."""
    from ..kernels.aot import compiling
    from ..kernels.layers import using_layer

    with compiling() as kernels, using_layer(layer) if layer else nullcontext():
        _CALLS[call.operator](**dict(call.sizes))
    return kernels


def operators() -> dict[str, tuple[str, ...]]:
    """Return the names of operators that can be warmed, with their sizes."""
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


_fp8 = partial(_meta, dtype=FP8)
_bf16 = partial(_meta, dtype=torch.bfloat16)
_f32 = partial(_meta, dtype=torch.float32)
_i32 = partial(_meta, dtype=torch.int32)


def _tokens(*shape: int) -> tuple[Tensor, Tensor]:
    """Rows with a scale for 128 numbers, laid out as `quantize_activations` does. Shapes: (…, m, k)."""
    *groups, m, k = shape
    return _fp8(*shape), _f32(*groups, ceil_div(k, BLOCK), get_tma_aligned_size(m, 4)).mT[..., :m, :]


def _weights(*shape: int) -> tuple[Tensor, Tensor]:
    """Weights with a scale for 128 x 128. Shapes: (…, n, k)."""
    *groups, n, k = shape
    return _fp8(*shape), _f32(*groups, ceil_div(n, BLOCK), ceil_div(k, BLOCK))


def _flat(rows: int, ks: list[int]) -> tuple[Tensor, Tensor]:
    """Blocks (rows, k) of groups one after the other, and scales (rows, sum of k / 128)."""
    return _fp8(rows * sum(ks)), _f32(sum(ks) // BLOCK, rows).T


def _paged_mqa_logits(b: int, next_n: int, heads: int, d: int, max_context_len: int) -> None:
    lengths, page = _i32(b, next_n), PAGE_TOKENS
    pages = ceil_div(max_context_len, page)
    cache = _meta(max(2, pages), page, 1, d + 4, dtype=torch.uint8)
    schedule = indexer.get_paged_mqa_logits_metadata(lengths, page, MULTIPROCESSORS)
    q, weights = _fp8(b, next_n, heads, d), _f32(b * next_n, heads)
    indexer.fp8_paged_mqa_logits(q, cache, weights, lengths, _i32(b, pages), schedule, max_context_len)


# The parameters of a call are the names of its sizes.
_CALLS: Final[dict[str, Callable[..., Any]]] = {
    "fp8_gemm_nt": lambda m, n, k: dense.fp8_gemm_nt(_tokens(m, k), _weights(n, k), _bf16(m, n)),
    "fp8_gemm_nt_accumulate": lambda m, n, k: dense.wgrad_gemm_fp8_fp8_fp32_nt(
        _tokens(m, k), _tokens(n, k), _f32(m, n)
    ),
    "bf16_gemm_nt": lambda m, n, k: dense.bf16_gemm_nt(_bf16(m, k), _bf16(n, k), _bf16(m, n)),
    "bf16_gemm_nn": lambda m, n, k: dense.bf16_gemm_nn(_bf16(m, k), _bf16(k, n), _bf16(m, n)),
    "bf16_gemm_tn": lambda m, n, k: dense.bf16_gemm_tn(_bf16(k, m), _bf16(k, n), _bf16(m, n)),
    "bf16_gemm_tt": lambda m, n, k: dense.bf16_gemm_tt(_bf16(k, m), _bf16(n, k), _bf16(m, n)),
    "m_grouped_fp8_gemm_nt_contiguous": lambda groups, m, n, k: grouped.m_grouped_fp8_gemm_nt_contiguous(
        _tokens(m, k), _weights(groups, n, k), _bf16(m, n), _i32(m)
    ),
    "m_grouped_fp8_gemm_nt_contiguous_psum": lambda groups, m, n, k: grouped.m_grouped_fp8_gemm_nt_contiguous(
        _tokens(m, k), _weights(groups, n, k), _bf16(m, n), _i32(groups), use_psum_layout=True
    ),
    "m_grouped_fp8_gemm_nt_masked": lambda groups, max_m, expected_m, n, k: grouped.m_grouped_fp8_gemm_nt_masked(
        _tokens(groups, max_m, k), _weights(groups, n, k), _bf16(groups, max_m, n), _i32(groups), expected_m
    ),
    "m_grouped_bf16_gemm_nt_contiguous": lambda groups, m, n, k: grouped.m_grouped_bf16_gemm_nt_contiguous(
        _bf16(m, k), _bf16(groups, n, k), _bf16(m, n), _i32(m)
    ),
    "m_grouped_bf16_gemm_nn_contiguous": lambda groups, m, n, k: grouped.m_grouped_bf16_gemm_nn_contiguous(
        _bf16(m, k), _bf16(groups, k, n), _bf16(m, n), _i32(m)
    ),
    "m_grouped_bf16_gemm_nt_contiguous_psum": lambda groups, m, n, k: grouped.m_grouped_bf16_gemm_nt_contiguous(
        _bf16(m, k), _bf16(groups, n, k), _bf16(m, n), _i32(groups), use_psum_layout=True
    ),
    "m_grouped_bf16_gemm_nt_masked": lambda groups, max_m, expected_m, n, k: grouped.m_grouped_bf16_gemm_nt_masked(
        _bf16(groups, max_m, k), _bf16(groups, n, k), _bf16(groups, max_m, n), _i32(groups), expected_m
    ),
    "k_grouped_fp8_gemm_nt_contiguous": lambda groups, m, n, k: grouped.k_grouped_fp8_gemm_nt_contiguous(
        _flat(m, [k] * groups), _flat(n, [k] * groups), d := _f32(groups, m, n), [k] * groups, _i32(groups), d
    ),
    "k_grouped_bf16_gemm_tn_contiguous": lambda groups, m, n, k: grouped.k_grouped_bf16_gemm_tn_contiguous(
        _bf16(groups * k, m), _bf16(groups * k, n), d := _f32(groups, m, n), [k] * groups, _i32(groups), d
    ),
    "einsum_bmk_bnk_mn": lambda b, m, n, k: einsums.einsum(
        "bmk,bnk->mn", _bf16(b, m, k), _bf16(b, n, k), _bf16(m, n)
    ),
    "einsum_bhr_hdr_bhd": lambda b, h, r, d: einsums.einsum(
        "bhr,hdr->bhd", _bf16(b, h, r), _bf16(h, d, r), _bf16(b, h, d)
    ),
    "einsum_bhd_hdr_bhr": lambda b, h, r, d: einsums.einsum(
        "bhd,hdr->bhr", _bf16(b, h, d), _bf16(h, d, r), _bf16(b, h, r)
    ),
    "einsum_bhd_bhr_hdr": lambda b, h, r, d: einsums.einsum(
        "bhd,bhr->hdr", _bf16(b, h, d), _bf16(b, h, r), _f32(h, d, r)
    ),
    "fp8_einsum_bhr_hdr_bhd": lambda b, h, r, d: einsums.fp8_einsum(
        einsums.FP8_EXPRESSION, (_fp8(b, h, r), _f32(b, h, ceil_div(r, BLOCK))), _weights(h, d, r), _bf16(b, h, d)
    ),
    "tf32_hc_prenorm_gemm": lambda m, n, k, num_splits: prenorm.tf32_hc_prenorm_gemm(
        _bf16(m, k), _f32(n, k), _f32(num_splits, m, n), _f32(num_splits, m), num_splits
    ),
    "quantize_activations": lambda m, n: activations.quantize_activations(_bf16(m, n)),
    "fp8_mqa_logits": lambda s, tokens, heads, d: indexer.fp8_mqa_logits(
        _fp8(s, heads, d), (_fp8(tokens, d), _f32(tokens)), _f32(s, heads), _i32(s), _i32(s)
    ),
    "fp8_paged_mqa_logits": _paged_mqa_logits,
}  # fmt: skip

__all__ = ["Call", "Warmed", "compile_call", "operators", "parse", "set_cache_dir", "warm"]
