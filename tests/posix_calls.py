"""System calls that Python does not have, and calls as somebody else."""

import ctypes
import errno
import mmap
import os
import warnings
from collections.abc import Callable
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_HANDLE_BYTES_MAX = 128

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2


def renameat2(source: str, target: str, flags: int) -> None:
    """renameat2(2) of two paths."""
    _checked(_libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags))


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    _checked(_libc.fallocate(descriptor, mode, ctypes.c_long(offset), ctypes.c_long(length)))


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def outcome(call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    """ "ok" or the name of the errno that `call` fails with."""
    try:
        call(*arguments, **named)
    except OSError as error:
        return name_of(error)
    return "ok"


def name_of(error: OSError) -> str:
    """The name of an errno; where there are two, that of the manual pages."""
    return "EOPNOTSUPP" if error.errno == errno.EOPNOTSUPP else errno.errorcode[error.errno or 0]


def as_user(uid: int, code: str, *, gid: int | None = None, groups: tuple[int, ...] = ()) -> str:
    """What `code` ends with ("ok" or the name of an errno) in a process of another user.

    `code` finds `os`, `mmap` and `fallocate`.

    It is a fork of this process, so neither the interpreter nor the present working directory need be within that
    user's reach.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python warns of forks of processes with threads; the child below does nothing that could meet their locks.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            group = uid if gid is None else gid
            os.setresgid(group, group, group)
            os.setresuid(uid, uid, uid)
            said = outcome(exec, code, {"os": os, "mmap": mmap, "fallocate": fallocate})
        except BaseException as error:  # noqa: BLE001 (the child must not continue as pytest)
            said = repr(error)
        finally:
            os.write(writer, said.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


class FileHandle:
    """struct file_handle of name_to_handle_at(2)."""

    def __init__(self, path: str) -> None:
        self._bytes = ctypes.create_string_buffer(8 + _HANDLE_BYTES_MAX)
        ctypes.c_uint.from_buffer(self._bytes).value = _HANDLE_BYTES_MAX
        mount = ctypes.c_int()
        _checked(_libc.name_to_handle_at(_AT_FDCWD, os.fsencode(path), self._bytes, ctypes.byref(mount), 0))

    def open(self, mount: int, flags: int) -> int:
        """open_by_handle_at(2): a descriptor of what the handle names. `mount` is open on the same mount."""
        descriptor: int = _libc.open_by_handle_at(mount, self._bytes, flags)
        if descriptor < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return descriptor
