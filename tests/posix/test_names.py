"""Names: rename, links, symbolic links, removal of what is open."""

import os
from pathlib import Path

import pytest

from posix_calls import RENAME_EXCHANGE, RENAME_NOREPLACE, outcome, renameat2

pytestmark = pytest.mark.mount

KINDS = ("missing", "file", "open file", "empty directory", "full directory", "symlink")


def make(kind: str, name: str) -> None:
    """Something of that kind, recognisable by its name."""
    if kind in ("file", "open file"):
        Path(name).write_bytes(name.encode())
    elif kind == "empty directory":
        os.mkdir(name)
    elif kind == "full directory":
        os.mkdir(name)
        Path(name, "inner").write_bytes(name.encode())
    elif kind == "symlink":
        os.symlink(f"target of {name}", name)


def shown(name: str) -> str:
    """What is there now, with the name it was made with."""
    if not os.path.lexists(name):
        return "missing"
    if os.path.islink(name):
        return "symlink " + os.readlink(name).removeprefix("target of ")
    if os.path.isdir(name):
        inner = os.listdir(name)
        return f"full directory {Path(name, 'inner').read_text()}" if inner else "empty directory"
    return "file " + Path(name).read_text()


def expected_of_rename(source: str, target: str) -> str:
    directories = ("empty directory", "full directory")
    if source == "missing":
        return "ENOENT"
    if target == "missing":
        return "ok"
    if source in directories and target not in directories:
        return "ENOTDIR"
    if source not in directories and target in directories:
        return "EISDIR"
    # ext4 and others say ENOTEMPTY, POSIX also allows EEXIST.
    return "ENOTEMPTY" if target == "full directory" else "ok"


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("place", ["same directory", "other directory"])
def test_rename(area, source, target, place):
    os.mkdir("from")
    to = "from" if place == "same directory" else "to"
    os.makedirs(to, exist_ok=True)
    old, new = "from/old", f"{to}/new"
    make(source, old)
    make(target, new)
    before = shown(old), shown(new)
    opened = ((source, old), (target, new))
    held = [open(name, "rb") for kind, name in opened if kind == "open file"]  # noqa: SIM115
    texts = [Path(file.name).read_bytes() for file in held]
    assert outcome(os.rename, old, new) == expected_of_rename(source, target)
    if expected_of_rename(source, target) == "ok":
        assert (shown(old), shown(new)) == ("missing", before[0])
    else:
        assert (shown(old), shown(new)) == before
    # A process that has a file open reads it to the end, named or not.
    for file, text in zip(held, texts, strict=True):
        assert file.read() == text
        file.close()


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("source", KINDS[1:])
def test_rename_without_replacing(area, source, target):
    make(source, "old")
    make(target, "new")
    before = shown("old"), shown("new")
    result = outcome(renameat2, "old", "new", RENAME_NOREPLACE)
    assert result == ("ok" if target == "missing" else "EEXIST")
    assert (shown("old"), shown("new")) == (("missing", before[0]) if result == "ok" else before)


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("source", KINDS[1:])
def test_rename_with_exchange(area, source, target):
    os.mkdir("d")
    make(source, "old")
    make(target, "d/new")
    before = shown("old"), shown("d/new")
    result = outcome(renameat2, "old", "d/new", RENAME_EXCHANGE)
    assert result == ("ENOENT" if target == "missing" else "ok")
    assert (shown("old"), shown("d/new")) == (before[::-1] if result == "ok" else before)


def test_rename_to_itself_and_to_another_name_of_the_same_file(area):
    Path("a").write_bytes(b"x")
    os.rename("a", "a")
    os.link("a", "b")
    os.rename("a", "b")
    assert sorted(os.listdir()) == ["a", "b"], "two names of one file stay"


def test_directory_does_not_move_into_itself(area):
    os.makedirs("a/b")
    assert outcome(os.rename, "a", "a/b/c") == "EINVAL"
    assert outcome(os.rename, "a", "a/x") == "EINVAL"
    assert outcome(os.rename, "a/b", "a") == "ENOTEMPTY"
    assert outcome(renameat2, "a", "a/b", RENAME_EXCHANGE) == "EINVAL"


def test_moved_directory_knows_its_parent(area):
    os.makedirs("a/b")
    os.mkdir("c")
    os.rename("a/b", "c/b")
    assert os.stat("c/b/..").st_ino == os.stat("c").st_ino
    assert os.stat("a").st_nlink == os.stat("c").st_nlink - 1


def test_rename_moves_a_tree(area):
    os.makedirs("a/b/c")
    Path("a/b/c/file").write_bytes(b"deep")
    os.rename("a", "z")
    assert Path("z/b/c/file").read_bytes() == b"deep"
    assert not os.path.exists("a")


def test_open_file_survives_renames(area):
    os.mkdir("d")
    with open("a", "w+b", buffering=0) as file:
        file.write(b"before")
        os.rename("a", "d/b")
        file.write(b" after")
        file.seek(0)
        assert file.read() == b"before after"
    assert Path("d/b").read_bytes() == b"before after"


def test_unlinked_open_file_lives_until_it_is_closed(area):
    data = b"x" * 3_000_000
    Path("a").write_bytes(data)
    with open("a", "r+b", buffering=0) as file:
        os.unlink("a")
        assert not os.path.exists("a")
        assert os.fstat(file.fileno()).st_nlink == 0
        assert file.read(10) == b"x" * 10
        file.seek(0)
        file.write(b"still writable")
        file.seek(0)
        assert file.read(20) == b"still writable" + b"x" * 6
        os.ftruncate(file.fileno(), 5)
        assert os.fstat(file.fileno()).st_size == 5
        Path("a").write_bytes(b"another")
        file.seek(0)
        assert file.read() == b"still"
    assert Path("a").read_bytes() == b"another"


def test_file_created_unlinked_and_used(area):
    descriptor = os.open("a", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink("a")
    os.write(descriptor, b"nameless" * 100_000)
    os.fsync(descriptor)
    assert os.pread(descriptor, 8, 8 * 99_999) == b"nameless"
    os.close(descriptor)
    assert os.listdir() == []


def test_replaced_open_file_keeps_its_content(area):
    Path("a").write_bytes(b"old")
    Path("b").write_bytes(b"new")
    with open("a", "rb") as file:
        os.rename("b", "a")
        assert file.read() == b"old"
    assert Path("a").read_bytes() == b"new"


def test_hard_links_are_one_file(area):
    Path("a").write_bytes(b"one")
    os.mkdir("d")
    os.link("a", "d/b")
    assert os.stat("a").st_ino == os.stat("d/b").st_ino
    assert os.stat("a").st_nlink == 2
    with open("d/b", "ab") as file:
        file.write(b" two")
    assert Path("a").read_bytes() == b"one two"
    os.chmod("d/b", 0o600)
    assert os.stat("a").st_mode & 0o777 == 0o600
    os.unlink("a")
    assert os.stat("d/b").st_nlink == 1
    assert Path("d/b").read_bytes() == b"one two"


def test_hard_link_errors(area):
    Path("a").write_bytes(b"")
    os.mkdir("d")
    assert outcome(os.link, "a", "a") == "EEXIST"
    assert outcome(os.link, "a", "d") == "EEXIST"
    assert outcome(os.link, "d", "e") == "EPERM"
    assert outcome(os.link, "missing", "e") == "ENOENT"
    assert outcome(os.link, "a", "missing/e") == "ENOENT"


def test_hard_link_of_a_symlink_is_a_symlink(area):
    os.symlink("nowhere", "link")
    os.link("link", "other", follow_symlinks=False)
    assert os.readlink("other") == "nowhere"
    assert os.lstat("link").st_nlink == 2


def test_symlinks(area):
    Path("a").write_bytes(b"x")
    os.symlink("a", "link")
    assert os.readlink("link") == "a"
    assert os.lstat("link").st_size == 1
    assert Path("link").read_bytes() == b"x"
    assert outcome(os.symlink, "b", "link") == "EEXIST"
    assert outcome(os.readlink, "a") == "EINVAL"
    os.unlink("link")
    assert os.path.exists("a")


@pytest.mark.parametrize("length", [1, 59, 60, 255, 256, 4000, 4095])
def test_symlink_targets_of_any_length(area, length):
    target = ("x" * 200 + "/") * 21
    os.symlink(target[:length], "link")
    assert os.readlink("link") == target[:length]
    assert os.lstat("link").st_size == length


def test_symlink_target_that_is_too_long_or_empty(area):
    assert outcome(os.symlink, "x" * 4096, "link") == "ENAMETOOLONG"
    assert outcome(os.symlink, "", "link") == "ENOENT"


def test_symlink_loops(area):
    os.symlink("b", "a")
    os.symlink("a", "b")
    os.symlink("self", "self")
    for name in ("a", "self"):
        assert outcome(os.stat, name) == "ELOOP"
        assert outcome(open, name) == "ELOOP"
        os.lstat(name)


def test_chain_of_symlinks_up_to_the_kernels_limit(area):
    Path("l0").write_bytes(b"end")
    for number in range(1, 43):
        os.symlink(f"l{number - 1}", f"l{number}")
    assert Path("l40").read_bytes() == b"end"
    assert outcome(os.stat, "l41") == "ELOOP"


def test_symlinks_to_directories(area):
    os.makedirs("a/b")
    os.symlink("a", "link")
    Path("link/file").write_bytes(b"x")
    assert os.path.exists("a/file")
    assert os.stat("link/b/..").st_ino == os.stat("a").st_ino
    assert outcome(os.rmdir, "link") == "ENOTDIR"
    assert outcome(os.unlink, "link/") == "ENOTDIR"


def test_names_of_every_length_and_of_strange_bytes(area):
    names = [b"x" * 255, "ü".encode() * 127, b"\xff\xfe", b" ", b"a\nb", b"-rf", b"...", b"\\"]
    for name in names:
        with open(name, "wb") as file:
            file.write(name)
    assert sorted(os.listdir(b".")) == sorted(names)
    for name in names:
        with open(name, "rb") as file:
            assert file.read() == name


def test_name_and_path_that_are_too_long(area):
    for call in (os.mkdir, os.stat, os.unlink, os.rmdir):
        assert outcome(call, "x" * 256) == "ENAMETOOLONG"
    assert outcome(open, "x" * 256, "w") == "ENAMETOOLONG"
    assert outcome(os.rename, ".", "x" * 256) in ("ENAMETOOLONG", "EBUSY")
    assert outcome(os.stat, "y/" * 2048) == "ENAMETOOLONG"


def test_unlink_and_rmdir_refuse_the_wrong_kind(area):
    Path("a").write_bytes(b"")
    os.makedirs("d/inner")
    assert outcome(os.unlink, "d") == "EISDIR"
    assert outcome(os.rmdir, "a") == "ENOTDIR"
    assert outcome(os.rmdir, "d") == "ENOTEMPTY"
    assert outcome(os.rmdir, "d/.") == "EINVAL"
    assert outcome(os.unlink, "missing") == "ENOENT"
    assert outcome(os.rmdir, "missing") == "ENOENT"


def test_mkdir_errors(area):
    Path("a").write_bytes(b"")
    os.mkdir("d")
    assert outcome(os.mkdir, "a") == "EEXIST"
    assert outcome(os.mkdir, "d") == "EEXIST"
    assert outcome(os.mkdir, "a/b") == "ENOTDIR"
    assert outcome(os.mkdir, "missing/b") == "ENOENT"


def test_removed_directory_that_is_still_the_working_directory(area):
    os.mkdir("d")
    os.chdir("d")
    os.rmdir(area / "d")
    try:
        assert outcome(os.mkdir, "x") == "ENOENT"
        assert outcome(open, "x", "w") == "ENOENT"
        assert os.listdir(".") == []
    finally:
        os.chdir(area)


def test_name_can_be_used_again_at_once(area):
    for round_ in range(50):
        Path("a").write_bytes(b"%d" % round_)
        assert Path("a").read_bytes() == b"%d" % round_
        os.unlink("a")
        os.mkdir("a")
        os.rmdir("a")
    assert os.listdir() == []
