"""Settings of the cluster: what is refused, what comes before what, and what waits for a restart."""

import pytest

from luciola.config import MetricsConfig
from luciola.errors import ConfigError
from luciola.settings import (
    DEFAULTS,
    HOT,
    META,
    MGMTD,
    READ,
    STORAGE,
    Adoption,
    assigned,
    check,
    effective,
    flatten,
    parse,
    to_toml,
)


def test_toml_reads_back_as_what_was_written():
    settings = {"storage.rdma_devices": 'a"b\\\x7f\n', "meta.gc_batch": 7, "metrics.allow_remote": True}
    assert parse(to_toml(settings)) == settings
    assert parse(to_toml(DEFAULTS)) == DEFAULTS


def test_assignments_need_no_quotes_and_name_all_that_are_none():
    assert assigned(["storage.durability=sync", 'meta.durability="sync"', "meta.gc_batch = 7"]) == {
        "storage.durability": "sync",
        "meta.durability": "sync",
        "meta.gc_batch": 7,
    }
    with pytest.raises(
        ConfigError, match=r"meta\.stripe: KEY=VALUE is expected; meta\.gc_batch: is set twice"
    ):
        assigned(["meta.stripe", "meta.gc_batch=1", "meta.gc_batch=2"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"meta.stripe": 0, "meta.strip": 1}, r"meta\.stripe: must be between.*; meta\.strip: unknown key"),
        ({"mgmtd.lease_ms": "long"}, r"mgmtd\.lease_ms: must be int"),
        ({"client.deadline_ms": 1000}, "where the program or the mount runs"),
        ({"storage.rack": "r1"}, "of one machine"),
        ({"mgmtd.lease_ms": 1500}, "two heartbeat intervals"),
        ({"metrics.listen": "10.0.0.1:0"}, "allow_remote"),
        ({"lease_ms": 1}, "unknown key"),
    ],
)
def test_bad_settings_are_refused_and_all_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        check(settings)


def test_settings_that_are_right_together_are_accepted():
    check({"metrics.listen": "10.0.0.1:0", "metrics.allow_remote": True})
    check({"mgmtd.lease_ms": 900, "mgmtd.heartbeat_interval_ms": 400})


@pytest.mark.parametrize(
    "toml", ["a = 1", "[meta", "x" * (65 << 10), "a = " + "[" * 9999, "[a]\nb = " + "9" * 5000]
)
def test_text_that_is_no_configuration_is_refused(toml):
    with pytest.raises(ConfigError):
        parse(toml)


def test_list_is_no_text():
    with pytest.raises(ConfigError, match="rdma_devices: must be str"):
        check(parse('[storage]\nrdma_devices = ["mlx5_0"]'))


def test_own_file_comes_before_the_cluster_and_that_before_the_defaults():
    config = effective({"meta.stripe": 2, "meta.gc_batch": 9}, {"meta.stripe": 3})
    assert (config.meta.stripe, config.meta.gc_batch) == (3, 9)
    assert config.metrics == MetricsConfig()


def test_hot_key_is_adopted_at_once_and_a_cold_one_waits():
    begun = Adoption.start(MGMTD, {}, 0, {})
    now = begun.adopted(3, {"mgmtd.down_out_s": 5, "mgmtd.lease_ms": 3500, "meta.stripe": 2})
    assert (now.running.mgmtd.down_out_s, now.running.mgmtd.lease_ms) == (5, 3000)
    assert (now.version, now.waiting) == (3, ("mgmtd.lease_ms",)), "what it does not read does not wait"
    assert now.adopted(4, {"mgmtd.down_out_s": 5}).waiting == (), "it is what it runs with again"
    restarted = Adoption.start(MGMTD, {}, 3, {"mgmtd.lease_ms": 3500})
    assert restarted.running.mgmtd.lease_ms == 3500


def test_hot_key_that_needs_a_cold_one_waits_with_it():
    begun = Adoption.start(MGMTD, {}, 0, {})
    now = begun.adopted(
        1, {"mgmtd.lease_ms": 8000, "mgmtd.bootstrap_ms": 9000, "mgmtd.heartbeat_interval_ms": 4000}
    )
    assert now.running == begun.running
    assert set(now.waiting) == {"mgmtd.lease_ms", "mgmtd.bootstrap_ms", "mgmtd.heartbeat_interval_ms"}


def test_hot_key_does_not_wait_with_one_that_waits():
    begun = Adoption.start(MGMTD, {}, 0, {})
    cold = {"mgmtd.lease_ms": 8000, "mgmtd.bootstrap_ms": 9000, "mgmtd.heartbeat_interval_ms": 4000}
    now = begun.adopted(1, cold | {"mgmtd.down_out_s": 0})
    assert now.running.mgmtd.down_out_s == 0
    assert set(now.waiting) == set(cold)


def test_start_uses_all_keys_but_those_that_this_release_cannot_have():
    now = Adoption.start(STORAGE, {}, 3, {"storage.durability": "sync", "storage.gone": 1})
    assert now.running.storage.durability == "sync"
    assert "storage.gone: unknown key" in now.problem


def test_settings_that_do_not_go_with_the_own_file_are_not_adopted():
    own = {"mgmtd.lease_ms": 2500}
    now = Adoption.start(MGMTD, own, 0, {}).adopted(2, {"mgmtd.heartbeat_interval_ms": 1400})
    assert (now.version, now.running.mgmtd.heartbeat_interval_ms) == (2, 1000)
    assert "two heartbeat intervals" in now.problem
    assert now.adopted(3, {"mgmtd.down_out_s": 9}).problem == ""
    started = Adoption.start(MGMTD, own, 2, {"mgmtd.heartbeat_interval_ms": 1400})
    assert started.running == effective(own)
    assert started.problem


def test_own_file_that_is_wrong_is_refused():
    with pytest.raises(ConfigError, match=r"meta\.stripe"):
        Adoption.start(META, {"meta.stripe": 0}, 0, {})


@pytest.mark.parametrize("kind", [MGMTD, META, STORAGE])
def test_each_hot_key_is_adopted_by_the_kind_that_reads_it(kind):
    for key in HOT[kind]:
        assert key.partition(".")[0] in READ[kind], f"{key} is not read by {kind}"
        now = Adoption.start(kind, {}, 0, {}).adopted(1, {key: DEFAULTS[key] + 1})
        assert flatten(now.running)[key] == DEFAULTS[key] + 1
        assert now.waiting == ()
