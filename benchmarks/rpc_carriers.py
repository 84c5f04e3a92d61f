"""What one call costs: gRPC unary, a gRPC stream kept open, and the lane, with the same message and handler.

usage: python benchmarks/rpc_carriers.py [--calls 3000]

The server runs in a process of its own; the client is Python in all three cases, so the figures are upper bounds of
what a Rust client sees on the lane. Prints µs per round trip and ratios to the lane.
"""

import argparse
import asyncio
import multiprocessing
import queue
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import uvloop

from luciola.wire import SERVICE, LaneServer, methods, mint
from luciola.wire.pb.meta_pb2 import Inode, InodeReply, LookupRequest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from lane_client import LaneClient

SECRET = bytes(32)
REQUEST = LookupRequest(parent=1, name=b"some-file-name")
REPLY = InodeReply(inode=Inode(id=77, permissions=0o644, length=123_456, mtime_ns=1_700_000_000_000_000_000))
PATH = methods.Meta.lookup.path


class Echo:
    """Answers look-ups from memory."""

    def lookup(self, request: LookupRequest, identity: Any) -> InodeReply:
        return REPLY


async def serve(pipe: Connection) -> None:
    bound = [methods.Bound(methods.Meta.lookup, Echo().lookup)]
    lane = LaneServer(bound, secret=SECRET)
    lane_address = await lane.start()

    async def unary(request: bytes, context: Any) -> bytes:
        LookupRequest.FromString(request)
        return REPLY.SerializeToString()

    async def stream(requests: Any, context: Any) -> Any:
        async for request in requests:
            LookupRequest.FromString(request)
            yield REPLY.SerializeToString()

    handlers = {
        "unary": grpc.unary_unary_rpc_method_handler(unary),
        "stream": grpc.stream_stream_rpc_method_handler(stream),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pipe.send((lane_address, f"127.0.0.1:{port}"))
    await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    await server.stop(0)
    await lane.stop()


def run_server(pipe: Connection) -> None:
    uvloop.run(serve(pipe))


def time_calls(call: Callable[[], object], count: int) -> float:
    """µs per call, after a warm-up."""
    for _ in range(count // 10):
        call()
    begin = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - begin) / count * 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=3000)
    calls = parser.parse_args().calls
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=run_server, args=(theirs,))
    server.start()
    lane_address, grpc_address = ours.recv()
    figures = {}
    with LaneClient(lane_address, mint(SECRET, role=SERVICE)) as lane:
        figures["lane"] = time_calls(lambda: lane.call(methods.Meta.lookup, REQUEST), calls)
    with grpc.insecure_channel(grpc_address) as channel:
        payload = REQUEST.SerializeToString()
        unary = channel.unary_unary("/bench/unary")
        figures["grpc unary"] = time_calls(lambda: InodeReply.FromString(unary(payload)), calls)
        outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        incoming = channel.stream_stream("/bench/stream")(_drain(outgoing))

        def exchange() -> InodeReply:
            outgoing.put(payload)
            return InodeReply.FromString(next(incoming))

        figures["grpc stream"] = time_calls(exchange, calls)
        outgoing.put(None)
    ours.send("stop")
    server.join()
    print("| carrier | µs per call | of the lane |\n|---|---:|---:|")
    for name, value in figures.items():
        print(f"| {name} | {value:.0f} | {value / figures['lane']:.1f} |")


def _drain(outgoing: "queue.SimpleQueue[bytes | None]") -> Iterator[bytes]:
    while (item := outgoing.get()) is not None:
        yield item


if __name__ == "__main__":
    main()
