"""Chunks that no file names wait before they are removed, and stay if a file names them by then."""

import pytest

from luciola.errors import InvalidArgument
from luciola.meta import schema
from luciola.meta.bootstrap import raise_generation
from luciola.meta.layout import chains_of
from luciola.meta.quarantine import CONTENTS_MAX
from luciola.wire.pb import meta_pb2 as pb

from .world import CHAINS, CHUNK, World, check_store, refused

DATA = b"x" * (2 * CHUNK)
DAY_MS = 24 * 3600 * 1000


def quarantined(world: World) -> list[pb.QuarantinedContent]:
    async def scan():
        return [each async for each in world.service.scan_quarantined(pb.ScanRequest(), world.identity)]

    return world.run(scan())


def quarantine(world: World, *contents: int, delay_ms: int = DAY_MS, chains=CHAINS) -> None:
    found = [pb.QuarantinedContent(content=each, chains=chains, chunks=1) for each in contents]
    request = pb.QuarantineRequest(contents=found, delay_ms=delay_ms)
    world.run(world.service.quarantine(request, world.identity))


def stray(world: World, content: int) -> None:
    """Chunks of a content that no inode names, on two chains."""
    for chain in CHAINS[:2]:
        world.control.write(chain, content, index=0, data=b"stray")


def test_chunks_are_removed_after_the_due_time_and_not_before(world):
    stray(world, 500)
    quarantine(world, 500)
    world.clock.advance(DAY_MS / 1000 - 1)
    world.collect()
    assert world.control.contents() == {500}
    (record,) = quarantined(world)
    assert (record.content, tuple(record.chains)) == (500, CHAINS)
    world.clock.advance(2)
    world.collect()
    assert world.control.contents() == set()
    assert quarantined(world) == []


def test_release_keeps_the_chunks(world):
    stray(world, 500)
    quarantine(world, 500)
    request = pb.ReleaseQuarantinedRequest(contents=quarantined(world))
    world.run(world.service.release_quarantined(request, world.identity))
    world.clock.advance(2 * DAY_MS / 1000)
    world.collect()
    assert world.control.contents() == {500}


def test_content_that_a_file_names_when_it_is_due_is_kept(world):
    inode, _ = world.chunked(b"f", DATA)
    quarantine(world, inode.content, chains=chains_of(inode.layout, CHAINS))
    world.clock.advance(2 * DAY_MS / 1000)
    world.collect()
    assert world.read(world.lookup(b"f")) == DATA
    assert quarantined(world) == []
    check_store(world)


def test_quarantine_outlives_a_restart(world):
    stray(world, 500)
    quarantine(world, 500)
    world.crash()
    assert [each.content for each in quarantined(world)] == [500]
    world.clock.advance(2 * DAY_MS / 1000)
    world.collect()
    assert world.control.contents() == set()


def test_wall_clock_that_is_set_forwards_ends_no_quarantine(world):
    stray(world, 500)
    quarantine(world, 500)
    world.clock.offset_ns = 30 * DAY_MS * 1_000_000
    world.collect()
    world.crash()  # the next process knows the wall clock only
    world.collect()
    assert world.control.contents() == {500}
    world.clock.advance(3601)
    world.collect()
    assert world.control.contents() == set()


@pytest.mark.parametrize("content", [20, 70_000, 140_000, 1 << 40])
def test_new_files_never_get_a_content_that_is_in_quarantine(world, content):
    first, _ = world.chunked(b"before", b"x")
    quarantine(world, content)
    contents = [world.chunked(b"%d" % number, b"x")[0].content for number in range(3)]
    world.crash()
    contents += [world.chunked(b"again %d" % number, b"x")[0].content for number in range(3)]
    assert min(contents) > max(content, first.content)
    assert contents == sorted(set(contents))


def test_new_generation_does_not_return_to_a_content_that_was_in_quarantine(world):
    content = (2 << schema.GENERATION_BITS) + 7
    quarantine(world, content)
    world.run(raise_generation(world.engine, 2, clock=world.clock))
    world.crash()
    assert world.chunked(b"f", b"x")[0].content > content


def test_chain_that_does_not_answer_delays_only_its_contents(world):
    stray(world, 500)
    world.control.write(CHAINS[5], 501, index=0, data=b"stray")
    quarantine(world, 500, delay_ms=0, chains=CHAINS[:2])
    quarantine(world, 501, delay_ms=0, chains=CHAINS[5:6])
    world.control.down.add(CHAINS[0])
    world.clock.advance(1)
    world.collect()
    assert world.control.contents() == {500}
    world.control.down.clear()
    world.collect()
    assert world.control.contents() == {500}, "the next attempt waits: it costs a read of every inode"
    world.clock.advance(61)
    world.collect()
    assert world.control.contents() == set()


def test_requests_out_of_bounds_are_refused(world):
    for contents, options in (
        ((0,), {}),
        ((1 << 63,), {}),
        ((500,), {"chains": ()}),
        ((500,), {"delay_ms": 1 << 50}),
        (range(1, CONTENTS_MAX + 2), {}),
    ):
        with refused(InvalidArgument):
            quarantine(world, *contents, **options)
    assert world.keys(schema.QUARANTINE) == []


def test_dead_chain_is_asked_once_for_all_contents_in_quarantine(world):
    contents = range(500, 508)
    for content in contents:
        stray(world, content)
    quarantine(world, *contents, chains=CHAINS[:2])
    world.clock.advance(2 * DAY_MS / 1000)
    world.control.down.add(CHAINS[0])
    retry = world.control.retried_calls
    for _ in range(2):
        world.run(world.collector.round())
    assert world.control.retried_calls == retry
    assert all((CHAINS[0], content) in world.control.chunks for content in contents)
    assert not any(world.control.chunks.get((CHAINS[1], content)) for content in contents)
    assert len(quarantined(world)) == len(contents)
    world.control.down.clear()
    world.clock.advance(60)
    world.collect()
    assert quarantined(world) == []
    assert world.control.contents() == set()
