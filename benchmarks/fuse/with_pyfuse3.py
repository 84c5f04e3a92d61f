"""The trivial file system served by pyfuse3 (libfuse 3, Cython, trio): `with_pyfuse3.py MOUNTPOINT`."""

import errno
import os
import stat
import sys

import pyfuse3
import trio

BIG = 2
BIG_BYTES = 256 << 20


class Trivial(pyfuse3.Operations):
    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self) -> None:
        super().__init__()
        self.big = bytearray(b"\1") * BIG_BYTES
        self.names = {b"big": BIG}
        self.next = BIG + 1

    def _attributes(self, inode):
        entry = pyfuse3.EntryAttributes()
        directory = inode == pyfuse3.ROOT_INODE
        entry.st_ino = inode
        entry.st_mode = stat.S_IFDIR | 0o755 if directory else stat.S_IFREG | 0o644
        entry.st_size = BIG_BYTES if inode == BIG else 0
        entry.st_nlink = 1
        entry.st_uid = entry.st_gid = 0
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    async def lookup(self, parent_inode, name, ctx=None):
        inode = self.names.get(bytes(name))
        if inode is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(inode)

    async def getattr(self, inode, ctx=None):
        return self._attributes(inode)

    async def create(self, parent_inode, name, mode, flags, ctx):
        self.names[bytes(name)] = inode = self.next
        self.next += 1
        return pyfuse3.FileInfo(fh=inode), self._attributes(inode)

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=inode)

    async def read(self, fh, off, size):
        return bytes(memoryview(self.big)[off : off + size]) if fh == BIG else b""

    async def write(self, fh, off, buf):
        self.big[off : off + len(buf)] = buf
        return len(buf)


if __name__ == "__main__":
    options = set(pyfuse3.default_options) | {"fsname=pyfuse3"}
    pyfuse3.init(Trivial(), sys.argv[1], options)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)
        os._exit(0)
