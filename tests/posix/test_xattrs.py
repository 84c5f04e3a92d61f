"""Extended attributes in the `user` and `trusted` name spaces."""

import os
from pathlib import Path

import pytest

from posix_calls import as_user, outcome

pytestmark = pytest.mark.mount


@pytest.fixture
def file(area):
    Path("a").write_bytes(b"content")
    return area


def test_attributes_are_set_listed_replaced_and_removed(file):
    assert os.listxattr("a") == []
    os.setxattr("a", "user.one", b"1")
    os.setxattr("a", "user.two", b"")
    assert sorted(os.listxattr("a")) == ["user.one", "user.two"]
    os.setxattr("a", "user.one", b"\x00\xff" * 100)
    assert os.getxattr("a", "user.one") == b"\x00\xff" * 100
    assert os.getxattr("a", "user.two") == b""
    os.removexattr("a", "user.one")
    assert os.listxattr("a") == ["user.two"]
    assert outcome(os.getxattr, "a", "user.one") == "ENODATA"
    assert outcome(os.removexattr, "a", "user.one") == "ENODATA"


def test_create_and_replace_flags(file):
    assert outcome(os.setxattr, "a", "user.x", b"1", os.XATTR_REPLACE) == "ENODATA"
    os.setxattr("a", "user.x", b"1", os.XATTR_CREATE)
    assert outcome(os.setxattr, "a", "user.x", b"2", os.XATTR_CREATE) == "EEXIST"
    os.setxattr("a", "user.x", b"3", os.XATTR_REPLACE)
    assert os.getxattr("a", "user.x") == b"3"


def test_directories_and_descriptors_have_attributes(file):
    os.mkdir("d")
    os.setxattr("d", "user.x", b"directory")
    assert os.getxattr("d", "user.x") == b"directory"
    with open("a", "rb") as opened:
        os.setxattr(opened.fileno(), "user.x", b"descriptor")
    assert os.getxattr("a", "user.x") == b"descriptor"


def test_attributes_follow_the_file_and_not_the_name(file):
    os.setxattr("a", "user.x", b"1")
    os.link("a", "b")
    os.rename("a", "c")
    assert os.getxattr("b", "user.x") == b"1"
    assert os.getxattr("c", "user.x") == b"1"
    Path("a").write_bytes(b"new")
    assert os.listxattr("a") == []


def test_value_of_some_size(file):
    value = os.urandom(2000)
    os.setxattr("a", "user.big", value)
    assert os.getxattr("a", "user.big") == value
    assert Path("a").read_bytes() == b"content"


def test_limits(file):
    assert outcome(os.setxattr, "a", "user." + "x" * 300, b"") in ("ERANGE", "ENAMETOOLONG")
    assert outcome(os.setxattr, "a", "user.big", bytes(65_537)) in ("E2BIG", "ENOSPC")
    assert outcome(os.setxattr, "a", "nonsense", b"") == "EOPNOTSUPP"
    assert outcome(os.getxattr, "missing", "user.x") == "ENOENT"


@pytest.mark.root
def test_only_who_may_write_sets_and_only_root_sees_trusted(file):
    os.chmod(".", 0o755)
    os.chmod("a", 0o644)
    assert as_user(1001, "os.setxattr('a', 'user.x', b'')") == "EACCES"
    os.setxattr("a", "user.x", b"1")
    assert as_user(1001, "assert os.getxattr('a', 'user.x') == b'1'") == "ok"
    os.setxattr("a", "trusted.secret", b"1")
    assert os.getxattr("a", "trusted.secret") == b"1"
    assert as_user(1001, "os.getxattr('a', 'trusted.secret')") in ("EPERM", "ENODATA")


@pytest.mark.parametrize(
    "change", [lambda: os.setxattr("a", "user.x", b"1"), lambda: os.removexattr("a", "user.y")]
)
def test_change_of_attributes_moves_ctime_at_once(file, change):
    os.setxattr("a", "user.y", b"1")
    before = os.stat("a")
    change()
    after = os.stat("a")
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_mtime_ns == before.st_mtime_ns


@pytest.mark.root
def test_trusted_attributes_are_listed_to_root_only(file):
    os.chmod("a", 0o644)
    os.setxattr("a", "user.shown", b"1")
    os.setxattr("a", "trusted.hidden", b"1")
    assert sorted(os.listxattr("a")) == ["trusted.hidden", "user.shown"]
    assert as_user(1000, "assert os.listxattr('a') == ['user.shown']") == "ok"
