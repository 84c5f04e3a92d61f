"""Files of pages on a real cluster, through the native client."""

import pytest
import torch

from cluster import LocalCluster
from luciola.client import close_locations, open_location
from luciola.errors import Busy, CorruptData
from luciola.plugins.flashmla import PageCache, PagedKVFile, PageLayout

LAYOUT = PageLayout(layers=3, page_tokens=64)


@pytest.fixture
def location(shared_cluster: LocalCluster):
    location = f"luciola://{shared_cluster.data}!/kv/chat.pages"
    yield location
    fs, _ = open_location(location)
    fs.rmtree("/kv")
    close_locations()


def random_cache(blocks):
    cache = PageCache.allocate(LAYOUT, blocks)
    generator = torch.Generator().manual_seed(blocks)
    for layer in cache.layers:
        layer.copy_(torch.randn(layer.shape, generator=generator))
    return cache


def test_pages_survive_and_are_verified(location):
    cache, other = random_cache(9), PageCache.allocate(LAYOUT, 9)
    tokens = list(range(64 * 8 + 10))
    with PagedKVFile.create(location, LAYOUT, 10, model="m") as file:
        file.save(file.names(tokens), range(9), cache).wait()
        with pytest.raises(Busy, match="take_over=True"):
            PagedKVFile.open(location, writable=True)
    close_locations()  # as a process that starts again
    with PagedKVFile.open(location, model="m", writable=True) as file:
        pages = file.match(tokens)
        assert len(pages) == 9
        assert file.load(pages, range(8, -1, -1), other).wait()
        for mine, its in zip(cache.layers, other.layers, strict=True):
            assert torch.equal(mine, its.flip(0))
        fs, path = open_location(location)
        with fs.open(path, "r+b") as raw:
            raw.pwrite(b"\x55\xaa", file.header.record_offset(4) + LAYOUT.layer_stride + 9)
        assert [(each.slot, each.layer) for each in file.verify()] == [(4, 1)]
        with pytest.raises(CorruptData, match=f"page 4, layer 1: .*{path}"):
            file.load(pages, range(9), other).wait()


def test_a_writer_that_died_is_followed_by_another(location):
    file = PagedKVFile.create(location, LAYOUT, 2, model="m")
    file._file.close()  # as a process that was killed
    with pytest.raises(Busy, match=r"process .* writes this file"):
        PagedKVFile.open(location, writable=True)
    cache = random_cache(1)
    with (
        PagedKVFile.open(location, writable=True, take_over=True) as again,
        PagedKVFile.open(location) as reader,
    ):
        again.save(again.names([1, 2, 3]), [0], cache).wait()
        reader.refresh()
        other = PageCache.allocate(LAYOUT, 1)
        reader.load(reader.match([1, 2, 3, 4]), [0], other).wait()
        assert all(map(torch.equal, cache.layers, other.layers))
    with PagedKVFile.open(location, writable=True) as third:
        assert len(third) == 1
