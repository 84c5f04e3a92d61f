"""Versions of the cluster's configuration: merged, refused, bounded, and gone back to."""

import asyncio

import pytest

from luciola.errors import ConfigError, NotFound
from luciola.kv import MemoryEngine
from luciola.mgmtd.configs import HISTORY_MAX, changed, current
from luciola.mgmtd.records import Change, Records
from luciola.mgmtd.store import Lease, Store
from luciola.settings import parse
from luciola.wire.pb import mgmtd_pb2 as pb


def applied(records: Records, *, own=None, seen=0, **fields) -> pb.ConfigVersion:
    change = changed(
        records, pb.SetConfigRequest(**fields), own=own or {}, author="admin", unix_ms=5, seen=seen
    )
    records.apply(change)
    return current(records)


def test_keys_are_added_replaced_and_unset():
    records = Records()
    assert current(records).version == 0
    applied(records, toml="[meta]\nstripe = 2\ngc_batch = 9\n")
    version = applied(records, toml="[meta]\nstripe = 3\n[mgmtd]\ndown_out_s = 1\n", unset=["meta.gc_batch"])
    assert (version.version, version.author, version.unix_ms) == (2, "admin", 5)
    assert parse(version.toml) == {"meta.stripe": 3, "mgmtd.down_out_s": 1}
    assert applied(records, toml="[meta]\nstripe = 3\n").version == 2, "nothing new is not stored"


@pytest.mark.parametrize(
    ("fields", "own"),
    [
        ({"toml": "[meta]\nstripe = 0\n"}, {}),
        ({"unset": ["meta.strip"]}, {}),
        ({"toml": "[mgmtd]\nheartbeat_interval_ms = 1400\n"}, {"mgmtd.lease_ms": 2500}),
    ],
)
def test_what_is_wrong_is_not_stored(fields, own):
    records = Records()
    with pytest.raises(ConfigError):
        applied(records, own=own, **fields)
    assert not records.configs


def test_key_of_another_release_can_be_unset():
    records = Records()
    records.apply(Change(configs=(pb.ConfigVersion(version=1, toml="[meta]\ngone = 1\nstripe = 2\n"),)))
    with pytest.raises(ConfigError, match="gone"):
        applied(records, toml="[meta]\ngc_batch = 9\n")
    assert parse(applied(records, unset=["meta.gone"]).toml) == {"meta.stripe": 2}


def test_history_is_bounded_and_a_version_in_it_is_gone_back_to():
    records = Records()
    for stripe in range(1, HISTORY_MAX + 3):
        applied(records, toml=f"[meta]\nstripe = {stripe}\n")
    assert sorted(records.configs) == list(range(3, HISTORY_MAX + 3))
    with pytest.raises(NotFound, match="version 2 is not kept"):
        applied(records, revert_to=2)
    assert parse(applied(records, revert_to=50).toml) == {"meta.stripe": 50}
    assert applied(records, revert_to=0).toml == ""
    assert len(records.configs) == HISTORY_MAX


def test_version_is_above_what_a_process_has_adopted_from_a_lost_store():
    assert applied(Records(), seen=7, toml="[meta]\nstripe = 2\n").version == 8


def test_versions_are_stored_and_forgotten_with_the_store():
    async def scenario() -> None:
        store = Store(MemoryEngine(), cluster_id="c")
        lease = await store.take(None, Lease(1, 0))
        assert lease is not None
        records = Records()
        for stripe in range(1, HISTORY_MAX + 2):
            request = pb.SetConfigRequest(toml=f"[meta]\nstripe = {stripe}\n")
            change = changed(records, request, own={}, author="a", unix_ms=0)
            await store.save(change, lease)
            records.apply(change)
        assert (await store.load()).configs == records.configs

    asyncio.run(scenario())
