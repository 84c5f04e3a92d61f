"""All that a key-value store holds, to compare stores."""

from collections.abc import Sequence

from luciola.kv import Engine

Content = Sequence[tuple[bytes, bytes]]


def content(engine: Engine) -> Content:
    """All that the store holds, its own keys too."""
    reader = engine.begin()
    try:
        own = [(key, reader.snapshot_get(key) or b"") for key in (b"\xff/log", b"\xff/position")]
        return [*reader.snapshot_range(b"\x00", b"\xff"), *own]
    finally:
        reader.cancel()
