import itertools

import pytest

from luciola.errors import PermissionDenied
from luciola.meta.permissions import (
    User,
    after_chmod,
    after_chown,
    after_write,
    inherit,
    may,
    require_chown,
    require_removal,
)
from luciola.wire.pb.meta_pb2 import DIRECTORY, REGULAR, Inode

ROOT = User(0, 0, ())
OWNER = User(1000, 1000, ())
MEMBER = User(1001, 1001, (1000,))
STRANGER = User(1002, 1002, (7,))


def file(permissions, *, kind=REGULAR, uid=1000, gid=1000):
    return Inode(type=kind, permissions=permissions, uid=uid, gid=gid)


@pytest.mark.parametrize("permissions", [0o000, 0o400, 0o241, 0o124, 0o777, 0o750, 0o007])
@pytest.mark.parametrize("wanted", range(8))
def test_the_first_class_that_matches_decides(permissions, wanted):
    inode = file(permissions)
    for user, shift in ((OWNER, 6), (MEMBER, 3), (STRANGER, 0)):
        assert may(user, inode, wanted) == (permissions >> shift & wanted == wanted)


def test_root_executes_only_what_has_an_execute_bit():
    assert may(ROOT, file(0o000), 6)
    assert not may(ROOT, file(0o666), 1)
    assert may(ROOT, file(0o001), 1)
    assert may(ROOT, file(0o000, kind=DIRECTORY), 7)


def test_sticky_directory_protects_names():
    sticky = file(0o1777, kind=DIRECTORY, uid=0)
    require_removal(OWNER, sticky, file(0o644))
    require_removal(ROOT, sticky, file(0o644))
    require_removal(STRANGER, file(0o1777, kind=DIRECTORY, uid=1002), file(0o644))
    with pytest.raises(PermissionDenied) as caught:
        require_removal(STRANGER, sticky, file(0o644))
    assert caught.value.errno == 1
    with pytest.raises(PermissionDenied) as caught:
        require_removal(STRANGER, file(0o755, kind=DIRECTORY), file(0o644))
    assert caught.value.errno == 13


def test_set_group_id_directory_hands_on_its_group():
    directory = file(0o2775, kind=DIRECTORY, uid=0, gid=50)
    assert inherit(OWNER, directory, 0o644, kind=REGULAR) == (50, 0o644)
    assert inherit(OWNER, directory, 0o755, kind=DIRECTORY) == (50, 0o2755)
    assert inherit(OWNER, directory, 0o2755, kind=REGULAR) == (50, 0o755)
    assert inherit(ROOT, directory, 0o2755, kind=REGULAR) == (50, 0o2755)
    assert inherit(User(5, 5, (50,)), directory, 0o2755, kind=REGULAR) == (50, 0o2755)
    assert inherit(OWNER, file(0o755, kind=DIRECTORY, gid=50), 0o644, kind=REGULAR) == (1000, 0o644)


def test_writing_clears_set_id():
    assert after_write(STRANGER, file(0o6777)) == 0o777
    assert after_write(STRANGER, file(0o6767)) == 0o2767  # without group execution it means something else
    assert after_write(ROOT, file(0o6777)) == 0o6777


def test_chown_clears_set_id_of_files():
    assert after_chown(file(0o6755)) == 0o755
    assert after_chown(file(0o6755, kind=DIRECTORY)) == 0o6755


def test_chmod_is_the_owners_and_cannot_take_a_foreign_group_id():
    assert after_chmod(OWNER, file(0o644), 0o2755) == 0o2755
    assert after_chmod(OWNER, file(0o644, gid=60), 0o2755) == 0o755
    assert after_chmod(ROOT, file(0o644, gid=60), 0o7755) == 0o7755
    with pytest.raises(PermissionDenied) as caught:
        after_chmod(MEMBER, file(0o644), 0o777)
    assert caught.value.errno == 1


def test_who_may_chown():
    inode = file(0o644)
    in_two = User(1000, 1000, (2000,))
    for user, uid, gid in itertools.product(
        (ROOT, in_two, STRANGER), (None, 1000, 1002), (None, 1000, 2000, 7)
    ):
        allowed = user is ROOT or (user is in_two and uid in (None, 1000) and gid in (None, 1000, 2000))
        if allowed:
            require_chown(user, inode, uid=uid, gid=gid)
        else:
            with pytest.raises(PermissionDenied) as caught:
                require_chown(user, inode, uid=uid, gid=gid)
            assert caught.value.errno == 1
