"""Read what a process shows to Prometheus, as Prometheus would."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from luciola.metrics.endpoint import UNIX_SCHEME, short_name
from luciola.wire import parse_address

TIMEOUT_S = 60.0
GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


@contextmanager
def connected(address: str) -> Iterator[socket.socket]:
    """A connection to "HOST:PORT" or "unix:PATH"."""
    if not address.startswith(UNIX_SCHEME):
        with socket.create_connection(parse_address(address), timeout=TIMEOUT_S) as raw:
            yield raw
        return
    path = Path(address.removeprefix(UNIX_SCHEME))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
        with short_name(path) as name:
            raw.connect(name)  # it waits while the queue of the other end is full
        raw.settimeout(TIMEOUT_S)
        yield raw


def received(raw: socket.socket) -> bytes:
    """What comes until the other end closes."""
    parts = []
    while part := raw.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def asked(address: str, request: bytes = GET) -> tuple[int, str, bytes]:
    """The status, head and body of an answer."""
    with connected(address) as raw:
        raw.sendall(request)
        head, _, body = received(raw).partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode(), body


def scrape(address: str) -> dict[str, Metric]:
    """The families of a process by name; a counter's ends in `_total`."""
    status, head, body = asked(address)
    assert status == 200, head
    families = text_string_to_metric_families(body.decode())
    return {each.name + "_total" * (each.type == "counter"): each for each in families}


def ours(families: dict[str, Metric]) -> set[str]:
    """The names that are Luciola's own."""
    return {name for name in families if name.startswith("luciola_")}


def total(families: dict[str, Metric], name: str, sample: str = "", **labels: str) -> float:
    """The sum of the samples of a family that have these labels."""
    return sum(
        each.value
        for each in families[name].samples
        if each.name == (sample or name) and labels.items() <= each.labels.items()
    )
