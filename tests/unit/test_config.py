"""Configuration: defaults, bounds, and messages that name the key."""

import dataclasses
from pathlib import Path

import pytest

from luciola.config import (
    BOUNDS,
    CHOICES,
    ClientConfig,
    ClusterConfig,
    MetaConfig,
    StorageConfig,
    load,
    loads,
    rdma_options,
)
from luciola.errors import ConfigError


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "luciola.toml"
    path.write_text("")
    assert load(path) == ClusterConfig()


def test_values_replace_defaults_and_leave_the_rest() -> None:
    config = loads("[meta]\nchunk_bytes = 4194304\n[storage]\ndurability = 'sync'\n")
    assert config.meta == dataclasses.replace(MetaConfig(), chunk_bytes=4 << 20)
    assert config.storage.durability == "sync"
    assert config.mgmtd == ClusterConfig().mgmtd


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense = 1", "nonsense: unknown key"),
        ("[meta]\nchunk_byte = 1", "meta.chunk_byte: unknown key .*chunk_bytes"),
        ("[meta]\nchunk_bytes = '1M'", "meta.chunk_bytes: must be int, not '1M'"),
        ("[meta]\nchunk_bytes = true", "meta.chunk_bytes: must be int, not True"),
        ("[meta]\nchunk_bytes = 1000000", "meta.chunk_bytes: must be a power of two"),
        ("[meta]\nchunk_bytes = 1024", "meta.chunk_bytes: must be between 65536 and"),
        ("[meta]\nstripe = 0", "meta.stripe: must be between 1"),
        ("[mgmtd]\nlease_ms = -1", "mgmtd.lease_ms: must be between 2"),
        ("[mount]\nallow_other = 1", "mount.allow_other: must be bool"),
        ("[storage]\ndurability = 'maybe'", "storage.durability: must be one of write, sync"),
        ("meta = 3", "meta: must be a table"),
        (
            "[metrics]\nlisten = 'on'",
            "metrics.listen: must be unix, off, or an IP address and a port, not 'on'",
        ),
        ("[metrics]\nlisten = '127.0.0.1'", "metrics.listen: must be unix"),
        ("[metrics]\nlisten = 'localhost:9470'", "metrics.listen: must be unix"),
        ("[metrics]\nlisten = '127.0.0.1:65536'", "metrics.listen: must be unix"),
        (
            "[metrics]\nlisten = '0.0.0.0:9470'",
            "metrics.listen: 0.0.0.0 can be reached .* metrics.allow_remote",
        ),
        ("[metrics]\nlisten = '[::]:9470'", "metrics.listen: .* can be reached"),
        ("[meta", "not valid TOML"),
        (f"x = {'9' * 5000}", "not valid TOML: .* digits"),
        (f"x = {'[' * 3000}", "not valid TOML: .* too deep"),
    ],
)
def test_mistakes_are_named_by_their_full_path(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loads(text)


@pytest.mark.parametrize("listen", ["unix", "off", "127.0.0.1:0", "[::1]:9470"])
def test_metrics_are_shown_on_this_machine_without_consent(listen: str) -> None:
    assert loads(f"[metrics]\nlisten = '{listen}'").metrics.listen == listen


def test_metrics_are_shown_to_others_if_the_operator_says_so() -> None:
    config = loads("[metrics]\nlisten = '10.0.0.1:9470'\nallow_remote = true")
    assert config.metrics.listen == "10.0.0.1:9470"


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: no such"):
        load(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary\.toml: not valid TOML"):
        load(tmp_path / "binary.toml")


def test_every_number_has_bounds() -> None:
    sections = [type(getattr(ClusterConfig(), part.name)) for part in dataclasses.fields(ClusterConfig)]
    numbers = {(cls, part.name) for cls in sections for part in dataclasses.fields(cls) if part.type is int}
    assert numbers == set(BOUNDS)


def test_defaults_obey_their_own_bounds() -> None:
    for (cls, name), (low, high) in BOUNDS.items():
        assert low <= getattr(cls(), name) <= high
    for (cls, name), choices in CHOICES.items():
        assert getattr(cls(), name) in choices


@pytest.mark.parametrize("component", [StorageConfig, ClientConfig])
def test_rdma_options_are_what_the_native_module_takes(component: type[StorageConfig | ClientConfig]) -> None:
    assert rdma_options(component()) == {
        "transport": "auto",
        "rdma_devices": [],
        "rdma_gid_index": None,
    }
    given = component(transport="rdma", rdma_devices=" mlx5_0, mlx5_1:1 ,", rdma_gid_index=3)
    assert rdma_options(given) == {
        "transport": "rdma",
        "rdma_devices": ["mlx5_0", "mlx5_1:1"],
        "rdma_gid_index": 3,
    }


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("transport = 'infiniband'", r"storage\.transport: must be one of auto, shm, tcp, rdma"),
        ("rdma_gid_index = 256", r"storage\.rdma_gid_index: must be between -1 and 255"),
        ("rack = 'row 7'", r"storage\.rack: must be 1 to 64 letters, digits"),
        ("rdma_devices = ['mlx5_0']", r"storage\.rdma_devices: must be str"),
    ],
)
def test_wrong_rdma_settings_are_refused(line: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        loads(f"[storage]\n{line}\n")
