"""A manifest whose last record is torn is cut; one that is damaged before its last record is refused."""

import pytest

from luciola.errors import CorruptData
from luciola.kv.manifest import HEADER, WHOLE, _fragment, cut_torn_record
from luciola.kv.rocksdb import RocksEngine


@pytest.fixture
def store(tmp_path):
    """A store of several tables, so that its manifest has several records; and how many keys it has."""
    engine = RocksEngine(tmp_path, create=True, write_buffer_bytes=4096)
    for number in range(20):
        transaction = engine.begin()
        transaction.put(b"%02d" % number, b"x" * 1000)
        transaction.commit()
    engine.close()
    return tmp_path


def manifest(store):
    return store / (store / "CURRENT").read_text().strip()


def records(content: bytes) -> list[int]:
    """Where each record begins."""
    places, place = [], 0
    while place < len(content):
        places.append(place)
        kind, length = _fragment(content, place)
        assert kind == WHOLE
        place += HEADER.size + length
    return places


def test_torn_last_record_is_cut_and_nothing_is_lost(store):
    content = manifest(store).read_bytes()
    last = records(content)[-1]
    for torn in range(last, len(content)):
        kept = content[:torn] + bytes(len(content) - torn)  # the length is on the disk, the bytes are not
        if kept == content:
            continue
        manifest(store).write_bytes(kept)
        assert cut_torn_record(store)
        assert manifest(store).read_bytes() == content[:last]


def test_store_with_a_torn_manifest_opens(store):
    content = manifest(store).read_bytes()
    spare = bytearray(
        content + content[records(content)[-1] :]
    )  # a further record, of which the sum is wrong
    spare[-1] ^= 1
    manifest(store).write_bytes(spare)
    engine = RocksEngine(store)
    assert len(list(engine.look().iterate(b"", b"\xff"))) == 20
    engine.close()


def test_damage_before_the_last_record_is_refused(store):
    content = bytearray(manifest(store).read_bytes())
    middle = records(bytes(content))[1] + HEADER.size
    content[middle] ^= 1
    manifest(store).write_bytes(content)
    with pytest.raises(CorruptData, match="MANIFEST"):
        RocksEngine(store)
    assert manifest(store).read_bytes() == content
