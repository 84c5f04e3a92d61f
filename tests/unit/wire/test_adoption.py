"""Adoption by one process: its file, its copy, and what it hears of mgmtd."""

import asyncio
import json

import pytest

from luciola.errors import ConfigError, Error, Timeout, Unavailable
from luciola.settings import MGMTD
from luciola.wire import adoption
from luciola.wire.adoption import AdoptedConfig, copy_path
from luciola.wire.pb.mgmtd_pb2 import ConfigVersion

COLD = ConfigVersion(version=4, toml="[mgmtd]\nlease_ms = 3500\ndown_out_s = 9\n")


async def kept(adopted: AdoptedConfig, path) -> None:
    keeping = asyncio.ensure_future(adopted.keep())
    while not path.is_file():  # noqa: ASYNC110 (a thread writes it)
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


def test_copy_that_could_not_be_written_is_written_later(tmp_path, monkeypatch):
    monkeypatch.setattr(adoption, "SAVE_AGAIN_S", 0.01)
    base = tmp_path / "mgmtd"
    adopted = AdoptedConfig(MGMTD, None, base)
    copy_path(base).mkdir()
    adopted.take(COLD)

    async def work() -> None:
        keeping = asyncio.ensure_future(adopted.keep())
        await asyncio.sleep(0.1)
        copy_path(base).rmdir()
        while not copy_path(base).is_file():  # noqa: ASYNC110 (a thread writes it)
            await asyncio.sleep(0)
        keeping.cancel()

    asyncio.run(work())
    assert AdoptedConfig(MGMTD, None, base).state().version == 4


class Managers:
    """One reply a call, or the error that it raises."""

    def __init__(self, *replies: "ConfigVersion | Error") -> None:
        self.replies = list(replies)

    async def call(self, *_, **__) -> ConfigVersion:
        reply = self.replies.pop(0)
        if isinstance(reply, Error):
            raise reply
        return reply


def test_start_asks_each_manager_until_one_answers(tmp_path):
    adopted = AdoptedConfig(MGMTD, None, tmp_path / "mgmtd")
    asyncio.run(adopted.refresh(Managers(Timeout("away"), Unavailable("away"), COLD), "a:1,b:1,c:1"))
    assert (adopted.config.mgmtd.lease_ms, adopted.state().waiting) == (3500, [])
    managers = Managers(Unavailable("away"), Unavailable("away"), COLD)
    asyncio.run(adopted.refresh(managers, "a:1,b:1"))
    assert managers.replies == [COLD], "two managers are asked"


def test_reply_that_comes_after_a_term_began_does_not_go_back(tmp_path):
    adopted = AdoptedConfig(MGMTD, None, tmp_path / "mgmtd")

    class Late(Managers):
        async def call(self, *_, **__) -> ConfigVersion:
            adopted.take(ConfigVersion(version=6, toml="[mgmtd]\ndown_out_s = 6\n"))
            self.replies.clear()
            return COLD

    async def work() -> None:
        managers = Late(COLD)
        following = asyncio.ensure_future(adopted.follow(managers, "a:1"))
        adopted.heard(4)
        while managers.replies or not copy_path(tmp_path / "mgmtd").exists():  # noqa: ASYNC110
            await asyncio.sleep(0)
        following.cancel()

    asyncio.run(work())
    assert (adopted.state().version, adopted.config.mgmtd.down_out_s) == (6, 6)


def test_none_set_is_no_reason_to_forget_a_version(tmp_path):
    adopted = AdoptedConfig(MGMTD, None, tmp_path / "mgmtd")
    adopted.take(COLD)
    adopted.take(ConfigVersion())
    assert adopted.state().version == 4


def test_copy_that_cannot_be_read_is_not_used(tmp_path):
    base = tmp_path / "mgmtd"
    for text in ("{", json.dumps({"version": 1}), json.dumps({"version": 1, "toml": "a = 1"}), "[" * 100_000):
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
