"""Reading what a process shows, as Prometheus would."""

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeAlias

from ..errors import Unavailable
from ..wire import parse_address
from .endpoint import UNIX_SCHEME, short_name

READ_BYTES_MAX: Final = 16 << 20  # of one answer: a hundred times what the largest process shows
PART_BYTES: Final = 1 << 16
REQUEST: Final = b"GET /metrics HTTP/1.1\r\nHost: luciola\r\n\r\n"

Key: TypeAlias = tuple[str, frozenset[tuple[str, str]]]
"""Name of a sample and its labels."""
Samples: TypeAlias = Mapping[Key, float]


def read_samples(address: str, *, timeout_s: float) -> Samples:
    """Return what the process at "HOST:PORT" or "unix:PATH" shows, all within `timeout_s`. Raises: Unavailable."""
    deadline_s = time.monotonic() + timeout_s
    try:
        with _connected(address, timeout_s) as raw:
            raw.sendall(REQUEST)
            head, _, body = _received(raw, deadline_s).partition(b"\r\n\r\n")
    except OSError as error:
        raise Unavailable(f"no metrics from {address}: {error.strerror or error}") from error
    status = head.partition(b"\r\n")[0].split()[1:2]
    if status != [b"200"]:
        raise Unavailable(f"no metrics from {address}: it answered {head[:80]!r}")
    try:
        return parse_samples(body.decode())
    except ValueError as error:  # UnicodeDecodeError is one, and the parser raises others
        raise Unavailable(f"no metrics from {address}: it answered nonsense: {error}") from error


def parse_samples(text: str) -> Samples:
    """Return the samples in a text of Prometheus. Raises: ValueError."""
    from prometheus_client.parser import text_string_to_metric_families

    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        if family.name.startswith("luciola_")
        for sample in family.samples
    }


@contextmanager
def _connected(address: str, timeout_s: float) -> Iterator[socket.socket]:
    if not address.startswith(UNIX_SCHEME):
        with socket.create_connection(parse_address(address), timeout=timeout_s) as raw:
            yield raw
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
        raw.settimeout(timeout_s)
        with short_name(Path(address.removeprefix(UNIX_SCHEME))) as name:
            raw.connect(name)
        yield raw


def _received(raw: socket.socket, deadline_s: float) -> bytes:
    received = bytearray()
    while True:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("it has not answered in time")
        raw.settimeout(left_s)
        if not (part := raw.recv(PART_BYTES)):
            return bytes(received)
        received += part
        if len(received) > READ_BYTES_MAX:
            raise OSError(f"more than {READ_BYTES_MAX} bytes")


__all__ = ["Key", "Samples", "parse_samples", "read_samples"]
