"""What a watcher is shown, of which it makes a copy of the names below a directory."""

import asyncio
import random

import pytest

from luciola.errors import (
    InvalidArgument,
    NotADirectory,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from luciola.meta import change_window, feed
from luciola.meta.feed import Cursor
from luciola.wire.pb import meta_pb2 as pb
from store_content import content

from .watched import Copy, WatchedWorld, names_below
from .world import ALICE, BOB, World

CREATE, LINK, RENAME = pb.CHANGE_CREATE, pb.CHANGE_LINK, pb.CHANGE_RENAME
REMOVE, CHANGE = pb.CHANGE_REMOVE, pb.CHANGE_ATTRIBUTES


@pytest.fixture
def world():
    return WatchedWorld()


def shown(reply):
    """(kind, path, old path) of each change; None where unset."""
    return [
        (
            each.kind,
            each.path if each.HasField("path") else None,
            each.old_path if each.HasField("old_path") else None,
        )
        for each in reply.changes
    ]


def test_each_operation_is_shown_with_its_path(world):
    start = world.watch().position
    world.mkdir(b"a/b", parents=True)
    created = world.create(b"a/f", write=True)
    world.close_one(created.inode.id, created.session, mtime_ns=5)
    world.symlink(b"s", b"a/f")
    world.link(b"a/f", b"g")
    world.rename(b"a/f", b"a/b/f")
    world.set_attr(b"a/b/f", permissions=0o600)
    world.xattr("set", created.inode.id, b"user.x", b"1")
    world.xattr("remove", created.inode.id, b"user.x")
    world.set_attr(b"a", permissions=0o700)
    world.unlink(b"g")
    world.remove_tree(b"a")
    assert shown(world.watch(after=start)) == [
        (CREATE, b"a", None),
        (CREATE, b"a/b", None),
        (CREATE, b"a/f", None),
        (CHANGE, b"a/f", None),
        (CREATE, b"s", None),
        (LINK, b"g", None),
        (RENAME, b"a/b/f", b"a/f"),
        (CHANGE, b"a/b/f", None),
        (CHANGE, b"a/b/f", None),
        (CHANGE, b"a/b/f", None),
        (CHANGE, b"a", None),
        (REMOVE, b"g", None),
        (REMOVE, b"a", None),
    ]


def test_watcher_of_a_subdirectory_sees_what_comes_and_goes(world):
    world.mkdir(b"in")
    world.mkdir(b"out/d", parents=True)
    world.create(b"out/d/f", write=False)
    start = world.watch(b"in").position
    world.create(b"elsewhere", write=False)
    world.rename(b"out/d", b"in/d")
    world.set_attr(b"in/d/f", permissions=0o600)
    world.rename(b"in/d/f", b"f")
    world.set_attr(b"f", permissions=0o644)
    world.rename(b"in", b"renamed")
    world.mkdir(b"renamed/e")
    assert shown(world.watch(b"renamed", after=start)) == [
        (RENAME, b"d", None),
        (CHANGE, b"d/f", None),
        (RENAME, None, b"d/f"),
        (RENAME, b"", b""),
        (CREATE, b"e", None),
    ]


def test_only_children_are_shown_on_request(world):
    world.mkdir(b"d")
    start = world.watch().position
    world.create(b"d/f", write=False)
    world.create(b"g", write=False)
    world.rename(b"d/f", b"h")
    reply = world.watch(after=start, children_only=True)
    assert shown(reply) == [(CREATE, b"g", None), (RENAME, b"h", None)]


def test_exchange_is_one_change(world):
    first, second = world.mkdir(b"a"), world.create(b"b", write=False).inode
    start = world.watch().position
    world.rename(b"a", b"b", exchange=True)
    world.rename(b"a", b"b", exchange=True)
    changes = world.watch(after=start).changes
    assert [each.exchanged for each in changes] == [True, True]
    assert [(each.inode, each.replaced) for each in changes] == [(first.id, second.id), (second.id, first.id)]
    assert [(each.path, each.old_path) for each in changes] == [(b"b", b"a")] * 2


def test_file_that_replaced_another_is_shown_by_its_name(world):
    old = world.create(b"f", write=False).inode
    new = world.create(b"t", write=False).inode
    start = world.watch().position
    world.set_attr(b"f", permissions=0o600)
    world.rename(b"t", b"f")
    world.set_attr(b"f", permissions=0o600)
    reply = world.watch(after=start)
    assert shown(reply) == [(CHANGE, b"f", None), (RENAME, b"f", b"t"), (CHANGE, b"f", None)]
    assert [(each.inode, each.replaced) for each in reply.changes] == [
        (old.id, 0),
        (new.id, old.id),
        (new.id, 0),
    ]


@pytest.mark.parametrize("how", ["itself", "above", "replaced"])
def test_watched_directory_that_goes_is_the_last_that_is_shown(world, how):
    directory = world.mkdir(b"a/w", parents=True)
    world.mkdir(b"other")
    start = world.watch(b"a/w").position
    if how == "itself":
        world.rmdir(b"a/w")
    elif how == "above":
        world.remove_tree(b"a")
    else:
        world.rename(b"other", b"a/w")
    assert shown(world.watch(at=directory.id, after=start)) == [(REMOVE, b"", None)]


def test_path_is_that_of_the_moment_of_the_change(world):
    start = world.watch().position
    world.mkdir(b"a")
    made = world.create(b"a/f", write=False).inode
    world.set_attr(b"a/f", permissions=0o600)
    world.rename(b"a", b"b")
    world.set_attr(b"b/f", permissions=0o640)
    world.rename(b"b/f", b"b/g")
    world.mkdir(b"c")
    world.rename(b"b", b"c/b")
    world.unlink(b"c/b/g")
    world.remove_tree(b"c")
    del world.feed
    world.crash()  # the window is read from the log
    expected = [
        (CREATE, b"a", None),
        (CREATE, b"a/f", None),
        (CHANGE, b"a/f", None),
        (RENAME, b"b", b"a"),
        (CHANGE, b"b/f", None),
        (RENAME, b"b/g", b"b/f"),
        (CREATE, b"c", None),
        (RENAME, b"c/b", b"b"),
        (REMOVE, b"c/b/g", None),
        (REMOVE, b"c", None),
    ]
    reply = world.watch(after=start)
    assert shown(reply) == expected
    assert reply.changes[1].inode == reply.changes[8].inode == made.id
    for number, each in enumerate(reply.changes):
        assert shown(world.watch(after=each.position)) == expected[number + 1 :]


def test_question_waits_for_a_change(world):
    start = world.watch().position

    async def scenario() -> pb.WatchReply:
        request = pb.WatchRequest(path=pb.Path(at=1), after=start, wait_ms=60_000)
        waiting = asyncio.ensure_future(world.service.watch(request, world.identity))
        await asyncio.sleep(0)
        made = world.service.mkdir(
            pb.MkdirRequest(caller=world.caller(), path=pb.Path(at=1, path=b"d"), permissions=0o755),
            world.identity,
        )
        await made
        return await waiting

    assert shown(world.run(scenario())) == [(CREATE, b"d", None)]


def test_question_that_waits_at_the_end_of_a_term_is_asked_again(world):
    start = world.watch().position

    async def scenario() -> None:
        request = pb.WatchRequest(path=pb.Path(at=1), after=start, wait_ms=60_000)
        waiting = asyncio.ensure_future(world.service.watch(request, world.identity))
        await asyncio.sleep(0)
        world.feed.close()
        with pytest.raises(Unavailable, match="another one"):
            await waiting

    world.run(scenario())
    assert world.engine.applied.observer is None


def test_nothing_is_kept_when_no_program_watches(world, monkeypatch):
    start = world.watch().position
    assert world.engine.applied.observer is not None
    monkeypatch.setattr(feed, "IDLE_S", -1.0)
    world.mkdir(b"a")
    assert world.engine.applied.observer is None
    world.mkdir(b"b")
    assert shown(world.watch(after=start)) == [(CREATE, b"a", None), (CREATE, b"b", None)]


def test_user_sees_what_it_may_list(world):
    world.mkdir(b"open", permissions=0o755)
    world.mkdir(b"closed", permissions=0o700)
    world.mkdir(b"search", permissions=0o711)
    start = world.watch(user=ALICE).position
    for name in (b"open", b"closed", b"search"):
        world.create(name + b"/f", write=False)
    world.rename(b"open/f", b"closed/g")
    assert shown(world.watch(after=start, user=ALICE)) == [
        (CREATE, b"open/f", None),
        (RENAME, None, b"open/f"),
    ]
    assert len(world.watch(after=start).changes) == 4
    for path in (b"closed", b"search"):
        with pytest.raises(PermissionDenied):
            world.watch(path, user=BOB)


def test_what_cannot_be_watched(world):
    world.create(b"f", write=False)
    with pytest.raises(NotADirectory):
        world.watch(b"f")
    with pytest.raises(NotFound):
        world.watch(b"missing")
    for bad in ("x", "1-2", "1-2-zz", "1--1-" + "00" * 16, "1-0-00"):
        with pytest.raises(InvalidArgument, match="position"):
            world.watch(after=bad)
    with pytest.raises(Unsupported, match="--metadata etcd"):
        plain = World()
        plain.service.watch(pb.WatchRequest(path=pb.Path(at=1)), plain.identity)


def refused(world, after: str) -> str:
    with pytest.raises(NotFound, match="list the directory again") as raised:
        world.watch(after=after)
    assert "too_old" in raised.value.fields
    return str(raised.value)


def test_position_before_what_the_log_keeps_is_refused(world):
    start = world.watch().position
    world.mkdir(b"a")
    world.mkdir(b"b")
    world.crash()
    last = world.engine.applied.position.index
    world.run(world.engine.log.trim(last))
    assert "trimmed" in refused(world, start)
    world.mkdir(b"c")
    assert "trimmed" in refused(world, start)


def test_position_that_is_too_far_behind_is_refused(world, monkeypatch):
    monkeypatch.setattr(change_window, "CHANGES_MAX", 5)
    monkeypatch.setattr(feed, "CHANGES_MAX", 5)
    start = world.watch().position
    for number in range(6):
        world.mkdir(b"%d" % number)
    assert "more than 5" in refused(world, start)
    world.crash()
    assert "more than 5" in refused(world, start)


def test_position_of_another_log_is_refused(world):
    world.mkdir(b"a")
    known = Cursor.parse(world.watch().position)
    for index in (known.record.index, known.record.index - 1, known.record.index + 1):
        other = Cursor(type(known.record)(index, b"x" * 16))
        assert "old snapshot" in refused(world, other.encode())
    world.engine.is_leased = False
    with pytest.raises(Unavailable):
        world.watch(after=Cursor(type(known.record)(known.record.index + 1, b"x" * 16)).encode())


def test_namespace_that_was_loaded_has_to_be_listed_again(world):
    dumped = WatchedWorld()
    dumped.create(b"f", write=False)
    start = world.watch().position
    header = pb.DumpHeader(
        format=1, cluster="other", store=5, generation=1, next_inode=1 << 20, next_content=1 << 20
    )
    begun = world.call_plain("begin_load", pb.BeginLoadRequest(header=header, new_contents=True))
    root = pb.Inode(id=1, type=pb.DIRECTORY, permissions=0o755, link_count=2, parent=1)
    world.call_plain("load", pb.LoadRequest(load=begun.load, records=[pb.DumpRecord(inode=root)]))
    world.call_plain("finish_load", pb.FinishLoadRequest(load=begun.load, trailer=pb.DumpTrailer(inodes=1)))
    assert "replaced" in refused(world, start)
    now = world.watch().position
    world.mkdir(b"a")
    assert shown(world.watch(after=now)) == [(CREATE, b"a", None)]


@pytest.mark.parametrize("seed", range(12))
def test_copy_that_follows_the_feed_is_the_namespace(seed, monkeypatch):
    """Random operations; the copy is behind by many, and the window is lost now and then."""
    monkeypatch.setattr(feed, "SLICE", 3)
    dice = random.Random(seed)
    world, copy = WatchedWorld(), Copy()
    cursor = world.watch().position
    for step in range(250):
        operate(world, dice)
        if dice.random() < 0.05:
            world.crash()
        if dice.random() < 0.1 or step == 249:
            while True:
                reply = world.watch(after=cursor)
                for each in reply.changes:
                    copy.take(each)
                if reply.position == cursor:
                    break
                cursor = reply.position
            assert copy.wrong == []
            assert copy.names == names_below(dict(content(world.engine.applied.engine)))


def operate(world, dice) -> None:  # noqa: C901 (one branch for each operation)
    paths = [b"", *sorted(names_below(dict(content(world.engine.applied.engine))))]
    source, target = dice.choice(paths), dice.choice(paths)
    new = (dice.choice(paths) + b"/%d" % dice.randrange(4)).lstrip(b"/")
    what = dice.choice(
        ["create", "mkdir", "link", "rename", "rename", "exchange", "unlink", "tree", "chmod", "apply"]
    )
    try:
        if what == "create":
            world.create(new, write=False)
        elif what == "mkdir":
            world.mkdir(new)
        elif what == "link":
            world.link(source, new)
        elif what == "rename":
            world.rename(source, dice.choice([new, target]))
        elif what == "exchange":
            world.rename(source, target, exchange=True)
        elif what == "unlink":
            world.unlink(source)
        elif what == "tree" and dice.random() < 0.3:
            world.remove_tree(source)
        elif what == "chmod" and source:
            world.set_attr(source, follow=False, permissions=dice.choice([0o700, 0o755]))
        elif what == "apply":
            world.apply((new, b"x"), (new + b"y", b"z"))
    except OSError as error:
        assert not error.retryable, error
