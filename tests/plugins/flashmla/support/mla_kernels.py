"""Every kernel of FlashMLA compiled ahead of time for Hopper (sm_90a), and what must hold of its machine code.

Tensor cores are used as they should be, nothing spills between their instructions, shared memory fits a multiprocessor,
copies run ahead.
"""

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch

import machine_code
from luciola.plugins.flashmla import (
    flash_attn_varlen_func,
    flash_mla_sparse_fwd,
    flash_mla_with_kvcache,
    get_mla_metadata,
    layouts,
)
from machine_code import SHARED_BYTES_MAX, Case, Gate, MachineCode

# Of a kernel whose output takes half of all registers (64 rows of 512 numbers): reloads of a few addresses.
WGMMA_SPILLS_MAX: Final = 8


# The scores' and the outputs' instruction, copies by TMA, registers split among the warps.
SPECIALISED: Final = ("HGMMA.64x64x16", "HGMMA.64x256x16", "UTMALDG.3D", "USETMAXREG")
# The same, and FP8 numbers that are loaded eight at a time and converted in pairs.
SPECIALISED_FP8: Final = ("HGMMA.64x64x16", "HGMMA.64x256x16", "USETMAXREG", "LDG.E.64", "F2FP.F16.E4M3")
# The same, and copies of 16 bytes a thread that arrive at a barrier.
SPECIALISED_COPIES: Final = (
    *("HGMMA.64x64x16", "HGMMA.64x256x16", "USETMAXREG"),
    *("LDGSTS.E.BYPASS.128", "ARRIVES.LDGSTSBAR"),
)
# Reloads of addresses where a sequence begins or ends, and up to eight a step in the warps that scale.
DENSE_FP8_SPILLS_MAX: Final = 64
MODEL1_SPILLS_MAX: Final = 32


def tensor_cores(
    wanted: tuple[str, ...] = (), spills_max: int = 0, all_spills_max: int | None = None
) -> tuple[Gate]:
    """The gate of a kernel: what must be in its machine code, and how much it may spill.

    spills_max: from the first to the last matrix instruction; in the whole kernel if it has none. all_spills_max: in
    warps without matrix instructions too; None: not looked at.
    """

    def failures(code: MachineCode) -> list[str]:
        spills = code.spills_between
        checks = (
            (spills <= spills_max, f"{spills} spills between matrix instructions, {spills_max} are allowed"),
            (not code.serialised, "matrix instructions wait for one another"),
            (
                all_spills_max is None or code.spills <= all_spills_max,
                f"{code.spills} spills in all, {all_spills_max} are allowed",
            ),
            (
                code.shared_bytes <= SHARED_BYTES_MAX,
                f"{code.shared_bytes} bytes of shared memory, {SHARED_BYTES_MAX} are there",
            ),
            *((f" {each}" in code.text, f"no {each}") for each in wanted),
        )
        return [message for holds, message in checks if not holds]

    return (failures,)


def cases() -> Iterator[Case]:
    """Every kernel that is launched on Hopper, with each tile and layout."""
    yield _case("schedule", "schedule_kernel", lambda: dense(16, torch.bfloat16))
    yield _case("combine", "flash_fwd_mla_combine_kernel", lambda: dense(16, torch.bfloat16))
    yield _case("combine-sink", "flash_fwd_mla_combine_kernel", lambda: sparse(16, layouts.V32_BYTES))
    name = "flash_fwd_splitkv_mla_kernel"
    ahead = ("HMMA", "LDGSTS")
    yield _case("dense-bf16-16", name, _dense(16, torch.bfloat16), ahead)
    for short, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        yield _case(f"dense-{short}-64", name, _dense(128, dtype), ("HGMMA", "LDGSTS"), WGMMA_SPILLS_MAX)
        yield _case(f"dense-{short}-hopper", f"{name}_ws", _dense(128, dtype), SPECIALISED, layer="hopper")
    yield _case("dense-fp8-16", name, _dense(16, torch.bfloat16, fp8=True), ahead)
    name = "flash_fwd_splitkv_mla_fp8_sparse_kernel"
    yield _fast_fp8("dense-fp8", _dense(128, torch.bfloat16, fp8=True), DENSE_FP8_SPILLS_MAX)
    yield _fast_fp8("sparse-v32", _sparse(128, layouts.V32_BYTES), 0)
    yield _fast_fp8("sparse-model1", _sparse(128, layouts.MODEL1_BYTES), MODEL1_SPILLS_MAX)
    for heads in (16, 32):
        yield _case(f"sparse-v32-{heads}", name, _sparse(heads, layouts.V32_BYTES), ("HMMA",))
    yield _case("sparse-model1-16", name, _sparse(16, layouts.MODEL1_BYTES), ("HMMA",))
    for width in (576, 512):
        for heads in (16, 32):
            yield _case(f"prefill-{width}-{heads}", "sparse_attn_fwd", _prefill(heads, width), ("HMMA",))
        more, name = ("HGMMA", "LDGSTS"), "sparse_attn_fwd"
        yield _case(f"prefill-{width}-64", name, _prefill(128, width), more, WGMMA_SPILLS_MAX)
        name, call = f"{name}_ws", _prefill(128, width)
        yield _case(f"prefill-{width}-hopper", name, call, SPECIALISED_COPIES, layer="hopper")
    for width in (128, 192):
        more = ("HGMMA", "LDGSTS")
        yield _case(f"varlen-{width}", "flash_fwd_varlen_kernel", _varlen(width), more)
        for part in ("queries", "tokens"):
            name = f"flash_bwd_varlen_{part}_kernel"
            yield _case(f"gradients-{width}-{part}", name, _gradients(width), more)
    yield _case("gradients-sums", "attention_sums_kernel", _gradients(128), ("LDG.E.128",))


def _case(
    name: str, kernel: str, call: Callable[[], object], wanted: tuple[str, ...] = (), spills_max: int = 0, *,
    layer: str = "triton", all_spills_max: int | None = None,
) -> Case:  # fmt: skip
    return Case(name, kernel, call, tensor_cores(wanted, spills_max, all_spills_max), layer)


def dense(heads: int, dtype: torch.dtype, *, fp8: bool = False) -> None:
    """Dense decoding of 8 sequences."""
    cache = _meta(64, 64, 1, 656, dtype=torch.float8_e4m3fn) if fp8 else _meta(64, 64, 1, 576, dtype=dtype)
    table, lengths = _meta(8, 16, dtype=torch.int32), _meta(8, dtype=torch.int32)
    schedule, _ = get_mla_metadata()
    q = _meta(8, 2, heads // 2, 576, dtype=dtype)
    flash_mla_with_kvcache(q, cache, table, lengths, 512, schedule, causal=True, is_fp8_kvcache=fp8)


def sparse(heads: int, row_bytes: int) -> None:
    """Sparse decoding of 8 sequences, with everything that its layout takes."""
    model1 = row_bytes == layouts.MODEL1_BYTES
    if model1:
        cache = layouts.empty_model1_cache(64, device="meta")
    else:
        cache = _meta(64, 64, 1, row_bytes, dtype=torch.float8_e4m3fn)
    indices, length = _meta(8, 2, 2048, dtype=torch.int32), _meta(8, dtype=torch.int32)
    more: dict[str, Any] = {}
    if model1:
        more = {"extra_k_cache": cache, "extra_indices_in_kvcache": indices}
        more |= {"topk_length": length, "extra_topk_length": length}
    schedule, _ = get_mla_metadata()
    q, sink = _meta(8, 2, heads, 512 if model1 else 576), _meta(heads, dtype=torch.float32)
    flash_mla_with_kvcache(
        q, cache, None, None, 512, schedule, is_fp8_kvcache=True, indices=indices, attn_sink=sink, **more
    )


def _fast_fp8(name: str, call: Callable[[], None], spills_max: int) -> Case:
    kernel = "flash_fwd_splitkv_mla_fp8_sparse_kernel_ws"
    return _case(f"{name}-hopper", kernel, call, SPECIALISED_FP8, layer="hopper", all_spills_max=spills_max)


def _dense(heads: int, dtype: torch.dtype, *, fp8: bool = False) -> Callable[[], None]:
    return lambda: dense(heads, dtype, fp8=fp8)


def _sparse(heads: int, row_bytes: int) -> Callable[[], None]:
    return lambda: sparse(heads, row_bytes)


def _prefill(heads: int, width: int) -> Callable[[], object]:
    q, kv, indices = _meta(64, heads, width), _meta(4096, 1, width), _meta(64, 1, 2048, dtype=torch.int32)
    sink, length = _meta(heads, dtype=torch.float32), _meta(64, dtype=torch.int32)
    return lambda: flash_mla_sparse_fwd(q, kv, indices, 0.1, 512, sink, length)


def _varlen(width: int) -> Callable[[], object]:
    q, v, starts = _meta(4096, 16, width), _meta(4096, 16, 128), _meta(9, dtype=torch.int32)
    return lambda: flash_attn_varlen_func(q, q, v, starts, starts, 512, 512, causal=True)


def _gradients(width: int) -> Callable[[], object]:
    q, v, starts = _meta(4096, 16, width), _meta(4096, 16, 128), _meta(9, dtype=torch.int32)
    k = _meta(4096, 16, width)
    given = tuple(each.requires_grad_() for each in (q, k, v))

    def call() -> object:
        out, _ = flash_attn_varlen_func(q, k, v, starts, starts, 512, 512, causal=True)
        return torch.autograd.grad(out, given, _meta(4096, 16, 128))

    return call


def _meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def reports(patterns: Sequence[str]) -> list[dict[str, Any]]:
    """What the gates find in the kernels whose names match one of the patterns."""
    return machine_code.reports(
        case for case in cases() if any(fnmatch.fnmatchcase(case.name, each) for each in patterns)
    )
