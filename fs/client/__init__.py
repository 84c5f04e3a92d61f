"""What programs import: `connect`, and the objects it leads to.

    with luciola.connect("/var/lib/luciola") as fs:          # data directory of a cluster on this machine
        with fs.open("/data/part-0", "rb") as file:           # or "host:port" with a secret file or a token
            header = file.read(64)
        ring = fs.ring(128)                                   # many reads in flight, straight into buffers
        ...
        data = await fs.aio.read("/data/part-0")              # asyncio, over a ring

    connection   which cluster, in whose name; one native client per process, also after fork
    file_system  names and attributes
    file         one open file
    ring         submission and completion
    aio          the same for asyncio
    watch        changes below a directory
    local        this machine's own files with the same methods
    location     a text that names a file on either
    chunks       chunks by their names, for backups
    attributes   stat results and directory entries
    layout       how the bytes of a file are spread

The work is done by `luciola_core`, which releases the GIL whenever it waits. Nothing here is cached except what the
native client caches; every call of `stat`, `listdir` and `open` asks the metadata service.

Fork: a `FileSystem` used in a forked child, or sent there by pickle, reconnects by itself, so DataLoader workers
simply work. A `File` or `Ring` that was opened before the fork refuses use in the child.
"""

from luciola_core import Buffer

from .aio import AsyncFile, AsyncFileSystem
from .attributes import DirEntry
from .connection import connect
from .file import File
from .file_system import FileSystem
from .layout import Layout
from .local import LocalFileSystem
from .location import Location, close_locations, open_location, parse_location, replacing
from .ring import Completion, Operation, Ring
from .watch import AsyncWatch, Change, TooOld, Watch

__all__ = [
    "AsyncFile",
    "AsyncFileSystem",
    "AsyncWatch",
    "Buffer",
    "Change",
    "Completion",
    "DirEntry",
    "File",
    "FileSystem",
    "Layout",
    "LocalFileSystem",
    "Location",
    "Operation",
    "Ring",
    "TooOld",
    "Watch",
    "close_locations",
    "connect",
    "open_location",
    "parse_location",
    "replacing",
]
