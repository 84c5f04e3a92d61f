"""The kernels compiled ahead of time for Hopper (sm_90a), without a GPU, and what must hold of their machine code.

    for report in compile_all():
        print(report.name, report.registers, report.shared_bytes, report.failures())

A `Configuration` is a kernel with its constants and the types and alignments that `launch` calls it with. Its gates:
the tensor cores are used as they should be, nothing spills, shared memory fits a multiprocessor.
"""

import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import kernel, launch

TARGET: Final = GPUTarget("cuda", 90, 32)
SHARED_BYTES_MAX: Final = 232_448  # dynamic shared memory of one thread block on sm_90
# Of a kernel whose output takes half of all registers (64 rows of 512 numbers): reloads of a few addresses.
WGMMA_SPILLS_MAX: Final = 8

_TOOLS: Final = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_ALIGNED: Final = [["tt.divisibility", 16]]

_INSTRUCTION: Final = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", re.MULTILINE)
_SPILLS: Final = frozenset(("LDL", "STL"))
_MATMULS: Final = frozenset(("HGMMA", "HMMA"))

# Types by argument name, for all kernels. "*" and the cache's or queries' type where the kernel is generic.
_TYPES: Final[dict[str, str]] = {
    **dict.fromkeys(("block_table", "seqlens", "table", "num_splits", "indices", "topk_length"), "*i32"),
    **dict.fromkeys(("extra_indices", "extra_length", "lengths", "starts_q", "starts_kv"), "*i32"),
    **dict.fromkeys(("lse", "piece_out", "piece_lse", "sink", "max_logits"), "*fp32"),
    "scale_log2": "fp32",
}
# Counts that a caller chooses freely are not promised to be multiples of 16.
_UNALIGNED: Final = frozenset(
    (
        *(
            "b",
            "parts",
            "s_q",
            "group",
            "h_kv",
            "h_q",
            "page_count",
            "extra_page_count",
            "table_width",
            "s_kv",
        ),
        *("total_q", "topk", "extra_topk", "stride_table", "scale_log2"),
    )
)


@dataclass(frozen=True)
class Configuration:
    """One kernel as `launch` would start it."""

    name: str
    function: Any
    constants: dict[str, Any]
    warps: int
    generic: str = "bf16"  # of q, k, v, kv and out
    cache: str = "bf16"
    wgmma: bool = True  # tiles of 64 rows and more must use the warpgroup instruction
    matmul: bool = True
    pipelined: bool = False  # tokens must be copied ahead, by cp.async
    stages: int = 2


@dataclass(frozen=True)
class Report:
    """What the assembler made of a configuration."""

    configuration: Configuration
    registers: int
    shared_bytes: int
    spills: int  # from the first to the last matrix instruction; in the whole kernel if it has none
    instructions: Counter[str] = field(repr=False)

    @property
    def name(self) -> str:
        return self.configuration.name

    def failures(self) -> list[str]:
        """The gates that do not hold; empty if all do."""
        wanted, found = self.configuration, self.instructions
        matrix = "HGMMA" if wanted.wgmma else "HMMA"
        most = WGMMA_SPILLS_MAX if wanted.wgmma else 0
        checks = (
            (self.spills <= most, f"{self.spills} spills between matrix instructions, {most} are allowed"),
            (self.shared_bytes <= SHARED_BYTES_MAX, f"{self.shared_bytes} bytes of shared memory"),
            (not wanted.matmul or found[matrix] > 0, f"no {matrix}"),
            (not wanted.pipelined or found["LDGSTS"] > 0, "no LDGSTS"),
        )
        return [message for holds, message in checks if not holds]


def configurations() -> Iterator[Configuration]:
    """Every kernel that `launch` can start on Hopper, with each tile and format."""
    yield Configuration("schedule", kernel.schedule_kernel, {}, 1, matmul=False)
    for sink in (False, True):
        yield Configuration(
            f"combine{'-sink' * sink}",
            kernel.flash_fwd_mla_combine_kernel,
            {"HAS_SINK": sink, "BLOCK_R": launch.COMBINE_ROWS},
            4,
            matmul=False,
        )
    for rows, tile in launch.DENSE_TILES.items():
        for dtype in ("bf16", "fp16"):
            constants = {"FORMAT": kernel.PLAIN_576, "CAUSAL": True}
            yield _dense(f"dense-{dtype}-{rows}", tile, constants, dtype, dtype)
    for rows, tile in launch.DENSE_FP8_TILES.items():
        yield _dense(f"dense-fp8-{rows}", tile, {"FORMAT": kernel.FP8_V32, "CAUSAL": True}, "bf16", "u8")
    for rows, tile in launch.MODEL1_TILES.items():
        yield _sparse(f"sparse-model1-{rows}", tile, kernel.FP8_MODEL1, extra=True)
    for rows, tile in launch.SPARSE_TILES.items():
        yield _sparse(f"sparse-v32-{rows}", tile, kernel.FP8_V32, extra=False)
        for plain in (kernel.PLAIN_576, kernel.PLAIN_512):
            constants = {"FORMAT": plain, "HAS_LENGTH": True, "HAS_SINK": True}
            yield _tiled(f"prefill-{(576, 512)[plain]}-{rows}", kernel.sparse_attn_fwd, tile, constants)
    for rope in (False, True):
        constants = {"HAS_ROPE": rope, "CAUSAL": True}
        name = f"varlen-{192 if rope else 128}"
        yield _tiled(name, kernel.flash_fwd_varlen_kernel, launch.VARLEN_TILE, constants)


def compile_one(configuration: Configuration) -> Report:
    """Compiles for sm_90a and reads the machine code. Takes seconds; Triton's cache remembers the result."""
    function = configuration.function
    names = function.arg_names
    signature = {name: _type(name, configuration) for name in names}
    attributes = {
        (place,): _ALIGNED
        for place, name in enumerate(names)
        if signature[name] != "constexpr" and name not in _UNALIGNED
    }
    constants = {(names.index(name),): value for name, value in configuration.constants.items()}
    source = ASTSource(function, signature, constants, attributes)
    options = {"num_warps": configuration.warps, "num_stages": configuration.stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=TARGET, options=options)
    usage, code = _disassembled(compiled.asm["cubin"])
    instructions = [match[1] for match in re.finditer(_INSTRUCTION, code)]
    return Report(
        configuration,
        registers=_number(r"REG:(\d+)", usage),
        shared_bytes=compiled.metadata.shared,
        spills=sum(each in _SPILLS for each in _between_matmuls(instructions)),
        instructions=Counter(instructions),
    )


def compile_all(chosen: Callable[[str], bool] = lambda _name: True) -> Iterator[Report]:
    """Reports of the configurations whose names are chosen."""
    for each in configurations():
        if chosen(each.name):
            yield compile_one(each)


def _dense(
    name: str, tile: launch.Tile, constants: dict[str, Any], generic: str, cache: str
) -> Configuration:
    return _tiled(name, kernel.flash_fwd_splitkv_mla_kernel, tile, {"PAGE": 64, **constants}, generic, cache)


def _sparse(name: str, tile: launch.Tile, layout: int, *, extra: bool) -> Configuration:
    constants = {
        "PAGE": 64,
        "EXTRA_PAGE": 64,
        "FORMAT": layout,
        "HAS_LENGTH": extra,
        "HAS_EXTRA": extra,
        "HAS_EXTRA_LENGTH": extra,
        "HAS_SINK": True,
    }
    return _tiled(name, kernel.flash_fwd_splitkv_mla_fp8_sparse_kernel, tile, constants, cache="u8")


def _tiled(  # noqa: PLR0913 (a kernel and its types)
    name: str,
    function: Any,
    tile: launch.Tile,
    constants: dict[str, Any],
    generic: str = "bf16",
    cache: str = "bf16",
) -> Configuration:
    tiled = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "STAGES": tile.stages, "INTERPRET": False}
    constants = {**constants, **tiled}
    wgmma = tile.block_m >= 64
    pipelined = tile.stages > 1
    return Configuration(
        name, function, constants, tile.warps, generic, cache, wgmma=wgmma, pipelined=pipelined
    )


def _type(name: str, configuration: Configuration) -> str:
    if name in configuration.constants:
        return "constexpr"
    if name in {"cache", "extra_cache"}:
        return f"*{configuration.cache}"
    if name in {"q", "k", "v", "kv", "out"}:
        return f"*{configuration.generic}"
    return _TYPES.get(name, "i32")


def _between_matmuls(instructions: list[str]) -> list[str]:
    places = [place for place, each in enumerate(instructions) if each in _MATMULS]
    return instructions[places[0] : places[-1] + 1] if places else instructions


def _disassembled(cubin: bytes) -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "kernel.cubin")
        Path(path).write_bytes(cubin)
        return _tool("--dump-resource-usage", path), _tool("-sass", path)


def _tool(flag: str, path: str) -> str:
    done = subprocess.run([_TOOLS / "cuobjdump", flag, path], capture_output=True, text=True, check=True)
    return done.stdout


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, "cuobjdump tells registers and stack of every kernel"
    return int(found[1])


__all__ = [
    "SHARED_BYTES_MAX",
    "TARGET",
    "Configuration",
    "Report",
    "compile_all",
    "compile_one",
    "configurations",
]
