"""Copies of a replica's store as it was at one position of its log, from which another replica can begin.

    seal      what a checkpoint contains: position, files, their checksums
    catalog   the checkpoints of one directory: create, list, verify, retain
    fetch     a copy of another replica's checkpoint
    restore   a store from a checkpoint
    remote    checkpoints over gRPC
    keeper    when they are made; the log is trimmed behind them
    catch_up  the store that a replica begins with

RocksDB makes a checkpoint of hard links to its tables, which never change, and of copies of a few small files: it costs
a flush, and the disk space of what has been compacted away since. Sealing it adds a checksum of each file, so that a
damaged one is found before RocksDB opens it.

    P1  a directory that is listed holds all its files, durably: it gets its name last
    P2  what is not complete is never listed, and is removed: at once by who began it, and when the catalog is opened
    P3  a store is restored only from files that match the seal
"""

from .catalog import Catalog, Checkpoint
from .fetch import DirectorySource, Source, fetch
from .restore import restore
from .seal import Seal, SealedFile

__all__ = [
    "Catalog",
    "Checkpoint",
    "DirectorySource",
    "Seal",
    "SealedFile",
    "Source",
    "fetch",
    "restore",
]
