"""The trivial file system served by fusepy (libfuse 2, ctypes): `with_fusepy.py MOUNTPOINT`."""

import errno
import stat
import sys

import fuse

BIG_BYTES = 256 << 20


class Trivial(fuse.Operations):
    use_ns = True

    def __init__(self) -> None:
        self.big = bytearray(b"\1") * BIG_BYTES
        self.names = {"/big"}

    def getattr(self, path, fh=None):
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path not in self.names:
            raise fuse.FuseOSError(errno.ENOENT)
        return {"st_mode": stat.S_IFREG | 0o644, "st_nlink": 1, "st_size": BIG_BYTES if path == "/big" else 0}

    def create(self, path, mode, fi=None):
        self.names.add(path)
        return 0

    def open(self, path, flags):
        return 0

    def read(self, path, size, offset, fh):
        return bytes(memoryview(self.big)[offset : offset + size])

    def write(self, path, data, offset, fh):
        self.big[offset : offset + len(data)] = data
        return len(data)


if __name__ == "__main__":
    fuse.FUSE(
        Trivial(),
        sys.argv[1],
        foreground=True,
        nothreads=False,
        big_writes=True,
        max_read=1 << 20,
        max_write=1 << 20,
        entry_timeout=0,
        attr_timeout=0,
        default_permissions=True,
        raw_fi=False,
    )
