from .world import *


def test_smoke(world):
    r = world.create(b"a")
    assert r.created and r.session
    assert world.lookup(b"a").id == r.inode.id
    world.mkdir(b"d")
    world.mkdir(b"x/y/z", parents=True)
    assert world.names() == [b"a", b"d", b"x"]
    assert world.stat(b"").link_count == 4
    world.rename(b"a", b"d/a")
    assert world.names() == [b"d", b"x"]
    inode, _ = world.chunked(b"f", b"x" * (3 * CHUNK + 5))
    assert inode.length == 3 * CHUNK + 5
    i = world.set_attr(b"f", length=CHUNK + 7)
    assert world.read(i) == b"x" * (CHUNK + 7)
    i = world.set_attr(b"f", length=2 * CHUNK)
    assert world.read(i) == b"x" * (CHUNK + 7) + bytes(CHUNK - 7)
    world.unlink(b"f")
    world.clock.advance(2)
    world.collect()
    assert not world.control.contents()
    assert not world.keys(b"O")
