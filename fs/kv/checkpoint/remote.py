"""Checkpoints over gRPC: what each replica serves of its catalog, and the `Source` that reads it.

Names that are asked for are those of checkpoints and of RocksDB's files: none leads out of the catalog's directory.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Final, cast

from ...errors import InvalidArgument, Timeout
from ...wire import methods
from ...wire.credentials import Identity
from ...wire.pb import replicas_pb2 as pb
from ...wire.pb.common_pb2 import Empty
from ...wire.rpc import RpcClients
from .catalog import Catalog
from .fetch import DirectorySource
from .seal import FILE_NAME

NAME: Final = re.compile(r"[0-9]{20}")
SILENCE_S: Final = (
    30.0  # between two pieces of a file, of which each is read from a disk in some milliseconds
)


class CheckpointService:
    """Serves `methods.Replicas` from a catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._source = DirectorySource(catalog)

    async def list_seals(self, _request: Empty, _identity: Identity) -> pb.Seals:
        return pb.Seals(seals=await self._source.seals())

    async def read_file(
        self, request: pb.ReadFileRequest, _identity: Identity
    ) -> AsyncIterator[pb.FileBytes]:
        if not NAME.fullmatch(request.checkpoint) or not FILE_NAME.fullmatch(request.file):
            raise InvalidArgument(f"no checkpoint has the file {request.checkpoint!r}/{request.file!r}")
        async with aclosing(self._source.read(request.checkpoint, request.file, request.offset)) as chunks:
            async for chunk in chunks:
                yield pb.FileBytes(data=chunk)


class RemoteSource:
    """The checkpoints of the replica at `address` (`fetch.Source`)."""

    def __init__(self, clients: RpcClients, address: str, *, silence_s: float = SILENCE_S) -> None:
        self._clients = clients
        self._address = address
        self._silence_s = silence_s

    async def seals(self) -> Sequence[bytes]:
        reply = await self._clients.call(self._address, methods.Replicas.list_seals, Empty())
        return tuple(reply.seals)

    async def read(self, name: str, file: str, offset_bytes: int) -> AsyncGenerator[bytes]:
        request = pb.ReadFileRequest(checkpoint=name, file=file, offset=offset_bytes)
        stream = self._clients.stream(self._address, methods.Replicas.read_file, request)
        async with aclosing(cast("AsyncGenerator[pb.FileBytes]", stream)) as pieces:
            while (piece := await self._next(pieces)) is not None:
                yield piece.data

    async def _next(self, pieces: AsyncGenerator[pb.FileBytes]) -> pb.FileBytes | None:
        try:
            async with asyncio.timeout(self._silence_s):
                return await anext(pieces, None)
        except Timeout:
            raise
        except TimeoutError as error:  # of this block
            raise Timeout(
                f"{self._address} sends nothing of a checkpoint for {self._silence_s:g} s"
            ) from error


__all__ = ["CheckpointService", "RemoteSource"]
