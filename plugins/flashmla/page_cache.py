"""The KV cache in memory that pages are loaded into and saved from: blocks, each with all layers of one page.

`PageCache.allocate` puts the layers of a block one behind the other, as the file does, so that one read fills a block
without a copy; `layers[i]` is a view with FlashMLA's shape, whose blocks are simply further apart. `PageCache.over`
takes the caches that a server already has, one tensor a layer; a block is then read in as many parts.
"""

from collections.abc import Callable, Mapping, Sequence
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

Done = Callable[[bool], bool]


class PageCache:
    """Blocks of cache memory. `layers[i]` has the shape (blocks, page_tokens, kv_heads, width)."""

    def __init__(self, layout: PageLayout, layers: list[torch.Tensor], memory: torch.Tensor | None) -> None:
        self.layout = layout
        self.layers = layers
        self.memory = memory  # (blocks, record_bytes) uint8, where blocks are as records
        self.blocks = layers[0].shape[0]
        self.device = layers[0].device
        self.staged = self.device.type != "cpu"  # bytes pass through host memory

    @classmethod
    def allocate(cls, layout: PageLayout, blocks: int, *, device: str | torch.device = "cpu") -> "PageCache":
        """Make a cache of that many blocks, zeros, in memory that storage nodes of this machine can fill themselves."""
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
        """Use the caches of a server, one tensor a layer. Raises: BadArgument, BadType."""
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
        """Return the memory of a block: (offset within a record, bytes). For a cache in host memory."""
        assert self.device.type == "cpu", "only host memory has memoryviews"
        if self.memory is not None:
            return [(0, _view(self.memory[block]))]
        stride = self.layout.layer_stride
        return [(number * stride, self.part(number, block)) for number in range(self.layout.layers)]

    def part(self, layer: int, block: int) -> memoryview:
        """Return the memory of one layer of a block. For a cache in host memory."""
        assert self.device.type == "cpu", "only host memory has memoryviews"
        return _view(self._bytes_of(layer, block))

    def _bytes_of(self, layer: int, block: int) -> torch.Tensor:
        if self.memory is not None:
            begin = layer * self.layout.layer_stride
            return self.memory[block, begin : begin + self.layout.layer_bytes]
        raw = self.layers[layer].view(torch.uint8)
        start = raw.storage_offset() + block * raw.stride(0)
        return raw.as_strided((self.layout.layer_bytes,), (1,), start)

    def copies(self) -> "Copies":
        """Return what carries out copies of a transfer, after what the caller's stream does to the blocks by now."""
        return Copies() if self.device.type == "cpu" else _StreamCopies(self.device)

    def put(self, block: int, record: torch.Tensor) -> None:
        """Begin to copy a record, a row of bytes in host memory, into a block on a device: one copy over the bus."""
        if self.memory is not None:
            self.memory[block].copy_(record, non_blocking=True)
        else:
            there = record.to(self.device, non_blocking=True)
            torch._foreach_copy_(self._places(block), self._pieces(there))

    def put_layer(self, layer: int, rows: Mapping[int, int], memory: torch.Tensor) -> None:
        """Begin to copy one layer of several blocks: one copy over the bus, and a launch that spreads it.

        `rows`: which row of `memory`, (rows, layer_stride) bytes in host memory, belongs to which block.
        """
        there = memory[: max(rows.values()) + 1].to(self.device, non_blocking=True)
        torch._foreach_copy_(
            [self._bytes_of(layer, block) for block in rows],
            [there[row, : self.layout.layer_bytes] for row in rows.values()],
        )

    def get(self, block: int, record: torch.Tensor) -> None:
        """Begin to copy a block on a device into a row of bytes in host memory."""
        if self.memory is not None:
            record.copy_(self.memory[block], non_blocking=True)
        else:
            there = torch.zeros(record.shape, dtype=torch.uint8, device=self.device)
            torch._foreach_copy_(self._pieces(there), self._places(block))
            record.copy_(there, non_blocking=True)

    def _places(self, block: int) -> list[torch.Tensor]:
        return [self._bytes_of(layer, block) for layer in range(self.layout.layers)]

    def _pieces(self, record: torch.Tensor) -> list[torch.Tensor]:
        begins = (number * self.layout.layer_stride for number in range(self.layout.layers))
        return [record[begin : begin + self.layout.layer_bytes] for begin in begins]


class Copies:
    """Carries out copies between staging memory and a cache: at once, for a cache in host memory."""

    def begin(self, copy: Callable[[], None]) -> Done:
        """Begin a copy. The result, a function, says whether it has ended; given True, it waits first."""
        copy()
        return lambda _wait: True

    def mark(self) -> Callable[[], None]:
        """Return a function that orders the calling thread's current stream after the copies that have begun by now."""
        return lambda: None


class _StreamCopies(Copies):
    """On a stream of their own, beside what the model does."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_event(torch.cuda.current_stream(device).record_event())

    def begin(self, copy: Callable[[], None]) -> Done:
        with torch.cuda.stream(self._stream):
            copy()
            event = self._stream.record_event()

        def done(wait: bool) -> bool:  # noqa: FBT001
            if wait:
                event.synchronize()
            return bool(event.query())

        return done

    def mark(self) -> Callable[[], None]:
        event = self._stream.record_event()
        return lambda: torch.cuda.current_stream(self._device).wait_event(event)


def staging_memory(device: torch.device, size: int) -> torch.Tensor:
    """Allocate bytes in host memory: pinned for a GPU, so that copies run beside the host."""
    if device.type == "cuda":
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    return torch.frombuffer(Buffer(size), dtype=torch.uint8)


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


__all__ = ["Copies", "Done", "PageCache", "staging_memory"]
