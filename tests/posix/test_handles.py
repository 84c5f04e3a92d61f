"""Handles of files, which outlive what the kernel remembers of names: name_to_handle_at(2), open_by_handle_at(2)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from posix_calls import FileHandle, outcome

pytestmark = [pytest.mark.mount, pytest.mark.root]

DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@pytest.fixture
def mount(area: Path) -> Iterator[int]:
    """A descriptor on the mount."""
    descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def forget_inodes() -> None:
    """The kernel forgets every inode that is not in use."""
    try:
        DROP_CACHES.write_text("2")
    except OSError as error:
        pytest.skip(f"inodes cannot be dropped here: {error}")


def test_handle_of_a_file_opens_it_when_the_kernel_has_forgotten_it(mount):
    Path("a").write_bytes(b"content")
    handle = FileHandle("a")
    os.rename("a", "b")
    forget_inodes()
    descriptor = handle.open(mount, os.O_RDONLY)
    assert os.read(descriptor, 100) == b"content"
    os.close(descriptor)


def test_handle_of_a_directory_leads_up_to_the_root_of_the_mount(mount):
    os.makedirs("a/b/c")
    Path("a/b/c/file").write_bytes(b"content")
    handle = FileHandle("a/b/c")
    forget_inodes()
    descriptor = handle.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    inner = os.open("file", os.O_RDONLY, dir_fd=descriptor)
    assert os.read(inner, 100) == b"content"
    assert os.path.samestat(os.stat("..", dir_fd=descriptor), os.stat("a/b"))
    assert Path(f"/proc/self/fd/{descriptor}").readlink() == Path("a/b/c").resolve()
    os.close(inner)
    os.close(descriptor)


def test_handle_of_a_removed_file_is_stale(mount):
    Path("a").write_bytes(b"content")
    handle = FileHandle("a")
    os.unlink("a")
    forget_inodes()
    assert outcome(handle.open, mount, os.O_RDONLY) == "ESTALE"
