"""The KV cache in memory that pages are loaded into and saved from: blocks, each with all layers of one page.

`PageCache.allocate` lays the layers of a block one behind the other, as the file does, so that one read fills a block
without a copy; `layers[i]` is a view with FlashMLA's shape, whose blocks are simply further apart. `PageCache.over`
takes the caches that a server already has, one tensor a layer; a block is then read in as many parts.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch

from ...client import Buffer
from ..kernels.errors import BadArgument, BadType
from .page_format import KINDS, PageLayout

_DTYPES: Final = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8-v32": torch.float8_e4m3fn,
    "fp8-model1": torch.float8_e4m3fn,
}


class PageCache:
    """Blocks of cache memory. `layers[i]` has the shape (blocks, page_tokens, kv_heads, width)."""

    def __init__(self, layout: PageLayout, layers: list[torch.Tensor], memory: torch.Tensor | None) -> None:
        self.layout = layout
        self.layers = layers
        self.memory = memory  # (blocks, record_bytes) uint8, where blocks lie as records do
        self.blocks = layers[0].shape[0]
        self.device = layers[0].device
        self.staged = self.device.type != "cpu"  # bytes pass through host memory

    @classmethod
    def allocate(cls, layout: PageLayout, blocks: int, *, device: str | torch.device = "cpu") -> "PageCache":
        """A cache of that many blocks, zeros, in memory that storage nodes of this machine can fill themselves."""
        if blocks < 1:
            raise BadArgument(f"blocks is {blocks}; a cache has at least one")
        size = blocks * layout.record_bytes
        if torch.device(device).type == "cpu":
            flat = torch.frombuffer(Buffer(size), dtype=torch.uint8)
        else:
            flat = torch.zeros(size, dtype=torch.uint8, device=device)
        memory = flat.view(blocks, layout.record_bytes)
        return cls(layout, [_layer(memory, layout, number) for number in range(layout.layers)], memory)

    @classmethod
    def over(cls, layout: PageLayout, layers: Sequence[torch.Tensor]) -> "PageCache":
        """The caches of a server, one tensor a layer. Raises: BadArgument, BadType."""
        if len(layers) != layout.layers:
            raise BadArgument(f"there are {len(layers)} tensors; the layout has {layout.layers} layers")
        wanted = (layout.page_tokens, layout.kv_heads, KINDS[layout.kind][1])
        for number, layer in enumerate(layers):
            if layer.dtype != _DTYPES[layout.kind] and layer.element_size() != KINDS[layout.kind][0]:
                raise BadType(
                    f"layer {number} has dtype {layer.dtype}; {layout.kind} is {_DTYPES[layout.kind]}"
                )
            if layer.shape[1:] != wanted or layer.shape[0] != layers[0].shape[0]:
                raise BadArgument(
                    f"layer {number} has shape {tuple(layer.shape)}; it must be {(layers[0].shape[0], *wanted)}"
                )
            if not _rows_are_dense(layer) or layer.stride(0) * layer.element_size() < layout.layer_bytes:
                raise BadArgument(f"layer {number}: a block must be {layout.layer_bytes} bytes without gaps")
            if layer.device != layers[0].device:
                raise BadArgument(f"layer {number} is on {layer.device}; the first is on {layers[0].device}")
        return cls(layout, list(layers), None)

    def parts(self, block: int) -> list[tuple[int, memoryview]]:
        """Memory of a block: (offset within a record, bytes). For a cache in host memory."""
        assert self.device.type == "cpu", "only host memory has memoryviews"
        if self.memory is not None:
            return [(0, _view(self.memory[block]))]
        stride = self.layout.layer_stride
        return [
            (number * stride, _view(self._bytes_of(number, block))) for number in range(self.layout.layers)
        ]

    def _bytes_of(self, layer: int, block: int) -> torch.Tensor:
        if self.memory is not None:
            begin = layer * self.layout.layer_stride
            return self.memory[block, begin : begin + self.layout.layer_bytes]
        raw = self.layers[layer].view(torch.uint8)
        start = raw.storage_offset() + block * raw.stride(0)
        return raw.as_strided((self.layout.layer_bytes,), (1,), start)

    def put(self, block: int, record: torch.Tensor) -> None:
        """Copies a record, a row of bytes in host memory, into a block on a device; returns when it is there."""
        for layer, piece in enumerate(self._pieces(record)):
            self._bytes_of(layer, block).copy_(piece, non_blocking=True)
        self._synchronize()

    def get(self, block: int, record: torch.Tensor) -> None:
        """Copies a block on a device into a row of bytes in host memory; returns when it is there."""
        for layer, piece in enumerate(self._pieces(record)):
            piece.copy_(self._bytes_of(layer, block), non_blocking=True)
        self._synchronize()

    def _pieces(self, record: torch.Tensor) -> list[torch.Tensor]:
        begins = (number * self.layout.layer_stride for number in range(self.layout.layers))
        return [record[begin : begin + self.layout.layer_bytes] for begin in begins]

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()


def _layer(memory: torch.Tensor, layout: PageLayout, number: int) -> torch.Tensor:
    size, width = KINDS[layout.kind]
    typed = memory.view(_DTYPES[layout.kind])
    shape = (memory.shape[0], layout.page_tokens, layout.kv_heads, width)
    strides = (layout.record_bytes // size, layout.kv_heads * width, width, 1)
    return typed.as_strided(shape, strides, number * layout.layer_stride // size)


def _rows_are_dense(layer: torch.Tensor) -> bool:
    _, _, heads, width = layer.shape
    return layer.stride()[1:] == (heads * width, width, 1)


def _view(data: torch.Tensor) -> memoryview:
    array: Any = data.numpy()
    return memoryview(array)


__all__ = ["PageCache"]
