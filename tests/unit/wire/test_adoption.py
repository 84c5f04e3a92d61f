"""Adoption by one process: its file, its copy, and what it hears of mgmtd."""

import asyncio
import json

import pytest

from luciola.errors import ConfigError
from luciola.settings import MGMTD
from luciola.wire.adoption import AdoptedConfig, copy_path
from luciola.wire.pb.mgmtd_pb2 import ConfigVersion

COLD = ConfigVersion(version=4, toml="[mgmtd]\nlease_ms = 3500\ndown_out_s = 9\n")


async def kept(adopted: AdoptedConfig, path) -> None:
    keeping = asyncio.ensure_future(adopted.keep())
    while not path.exists():  # noqa: ASYNC110 (a thread writes it)
        await asyncio.sleep(0)
    keeping.cancel()


def test_copy_is_what_a_start_without_mgmtd_uses(tmp_path):
    base = tmp_path / "mgmtd"
    adopted = AdoptedConfig(MGMTD, None, base)
    seen = []
    adopted.on_change(seen.append)
    adopted.take(COLD)
    assert [config.mgmtd.down_out_s for config in seen] == [9]
    assert adopted.state().waiting == ["mgmtd.lease_ms"]
    asyncio.run(kept(adopted, copy_path(base)))
    again = AdoptedConfig(MGMTD, None, base)
    assert (again.config.mgmtd.lease_ms, again.state().version) == (3500, 4)
    assert not again.state().waiting


def test_none_set_is_no_reason_to_forget_a_version(tmp_path):
    adopted = AdoptedConfig(MGMTD, None, tmp_path / "mgmtd")
    adopted.take(COLD)
    adopted.take(ConfigVersion())
    assert adopted.state().version == 4


def test_copy_that_cannot_be_read_is_not_used(tmp_path):
    base = tmp_path / "mgmtd"
    for text in ("{", json.dumps({"version": 1}), json.dumps({"version": 1, "toml": "a = 1"})):
        copy_path(base).write_text(text)
        assert AdoptedConfig(MGMTD, None, base).state().version == 0


def test_own_file_comes_first_and_its_errors_name_it(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text("[mgmtd]\ndown_out_s = 1\n")
    adopted = AdoptedConfig(MGMTD, file, tmp_path / "mgmtd")
    adopted.take(COLD)
    assert adopted.config.mgmtd.down_out_s == 1
    assert adopted.state().own_toml == file.read_text()
    file.write_text("[mgmtd")
    with pytest.raises(ConfigError, match=r"own\.toml: not valid TOML"):
        AdoptedConfig(MGMTD, file, tmp_path / "mgmtd")
    file.write_text("[mgmtd]\nlease_m = 1\n")
    with pytest.raises(ConfigError, match=r"mgmtd\.lease_m: unknown key"):
        AdoptedConfig(MGMTD, file, tmp_path / "mgmtd")
