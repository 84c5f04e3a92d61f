"""Listings that continue while the directory changes, by name and by cookie."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luciola.errors import Error
from luciola.meta.allocator import FIRST_ID

from .world import World, check_store

NAMES = [b"%d" % number for number in range(8)]
name = st.sampled_from(NAMES)
CHANGES = st.one_of(
    st.tuples(st.sampled_from(["create", "unlink"]), name),
    st.tuples(st.sampled_from(["rename", "exchange", "link"]), name, name),
)
STEPS = st.lists(st.lists(CHANGES, max_size=4), min_size=1, max_size=12)


def change(world: World, act: str, *names: bytes) -> None:
    try:
        match act:
            case "create":
                world.create(*names, write=False)
            case "unlink":
                world.unlink(*names)
            case "rename":
                world.rename(*names)
            case "exchange":
                world.rename(*names, exchange=True)
            case "link":
                world.link(*names)
    except Error:  # no such name, or one that exists: another change, then
        pass


def pages(world: World, *, by_cookie: bool, limit: int):
    """The names of a directory, a page at a time."""
    after = 0 if by_cookie else b""
    while True:
        page = world.list(limit=limit, **{"after_cookie" if by_cookie else "after": after})
        yield [entry.name for entry in page.entries]
        if not page.more:
            return
        before, last = after, page.entries[-1]
        after = (last.cookie or last.inode) if by_cookie else last.name
        assert after > before


@pytest.mark.parametrize("by_cookie", [False, True], ids=["name", "cookie"])
@settings(max_examples=150, deadline=None)
@given(before=st.lists(CHANGES, max_size=20), steps=STEPS, limit=st.integers(1, 3))
def test_what_is_there_all_the_while_is_listed_once(by_cookie, before, steps, limit):
    world = World()
    for each in before:
        change(world, *each)
    stayed = set(world.names())
    seen = []
    changes = iter(steps)
    for names in pages(world, by_cookie=by_cookie, limit=limit):
        seen += names
        for each in next(changes, ()):
            change(world, *each)
            stayed &= set(world.names())
    assert [name for name in sorted(seen) if name in stayed] == sorted(stayed)
    check_store(world)
    world.close()


def test_cookies_are_in_the_order_in_which_names_were_made(world):
    for made in (b"c", b"a", b"b"):
        world.create(made, write=False)
    world.link(b"c", b"link")
    page = world.list(after_cookie=0)
    assert [entry.name for entry in page.entries] == [b"c", b"a", b"b", b"link"]
    cookies = [entry.cookie or entry.inode for entry in page.entries]
    assert cookies == sorted(set(cookies))
    assert cookies[0] >= FIRST_ID
    assert cookies[-1] < page.next_cookie <= world.create(b"d").inode.id


def test_next_cookie_is_not_reached_by_what_was_there_before_a_restart(world):
    world.create(b"a", write=False)
    before = world.list(after_cookie=0).next_cookie
    world.crash()
    assert world.list(after_cookie=0).next_cookie >= before
    assert world.create(b"b").inode.id >= before


def cookies(world: World) -> dict[bytes, int]:
    return {entry.name: entry.cookie or entry.inode for entry in world.list(after_cookie=0).entries}


def test_renamed_file_is_not_listed_again(world):
    world.create(b"a", write=False)
    before = cookies(world)
    world.rename(b"a", b"z")
    assert cookies(world) == {b"z": before[b"a"]}


def test_name_keeps_its_cookie_when_it_gets_another_file(world):
    for made in (b"kept", b"new", b"other"):
        world.create(made, write=False)
    before = cookies(world)
    world.rename(b"new", b"kept")
    world.rename(b"kept", b"other", exchange=True)
    assert cookies(world) == {name: before[name] for name in (b"kept", b"other")}
    check_store(world)


def test_cookie_moves_to_another_directory(world):
    directory = world.mkdir(b"d").id
    world.create(b"f", write=False)
    before = cookies(world)[b"f"]
    world.rename(b"f", b"d/g")
    (entry,) = world.list(directory, after_cookie=0).entries
    assert (entry.cookie or entry.inode) == before
    assert list(world.list(directory, after_cookie=before).entries) == []


def test_no_cookie_is_beyond_the_greatest_that_an_offset_can_be(world):
    world.create(b"f", write=False)
    for after in ((1 << 63) - 1, 1 << 63, (1 << 64) - 1):
        page = world.list(after_cookie=after)
        assert (list(page.entries), page.more) == ([], False)
