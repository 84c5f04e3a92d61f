"""How a process adopts the settings of the cluster: it hears of a version in replies to heartbeats, and asks for it.

    BASE.config.json   beside the data of a process named `base`: the last version that it got, for a start without
                       mgmtd

A copy that cannot be read or written is said in the log; the process works without.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from .. import settings
from ..config import ClusterConfig, read_text
from ..errors import ConfigError, Error
from ..settings import Adoption
from . import methods
from .addresses import parse_addresses
from .atomic_write import read_private, write_private
from .pb.common_pb2 import Empty
from .pb.mgmtd_pb2 import ConfigState, ConfigVersion
from .rpc import RpcClients

log = logging.getLogger(__name__)

START_S: Final = 1.0  # of a start, to ask each manager: the copy is used after it
CALL_S: Final = 5.0
SAVE_AGAIN_S: Final = 60.0  # after a copy could not be written
SUFFIX: Final = ".config.json"

Fetch = Callable[[], Awaitable[ConfigVersion]]


def copy_path(base: Path) -> Path:
    """Return the copy of the process whose data is at `base`."""
    base = base.absolute()
    return base.with_name(f"{base.name}{SUFFIX}")


def newest_copy(directory: Path) -> ConfigVersion:
    """Return the newest version of the copies in `directory`; number 0 without one. When it was set is not known."""
    copies = (_read_copy(path) for path in directory.glob(f"*{SUFFIX}"))
    return max(copies, key=lambda copy: copy.version, default=ConfigVersion())


class AdoptedConfig:
    """What one process of `kind` runs with, from its own `file` and what the cluster has set. `base`: its data."""

    def __init__(self, kind: str, file: Path | None, base: Path) -> None:
        own = _own(file)
        version = _read_copy(copy_path(base))
        self._copy = copy_path(base)
        self._saved = version.version
        self._latest = version
        self._adoption = _started(kind, own, version)
        self._heard = 0
        self._news = asyncio.Event()
        self._listener: Callable[[ClusterConfig], None] | None = None

    @property
    def config(self) -> ClusterConfig:
        """What it runs with now."""
        return self._adoption.running

    @property
    def own(self) -> settings.Settings:
        """The keys of its own file."""
        return self._adoption.own

    def state(self) -> ConfigState:
        """Return what mgmtd hears of it."""
        now = self._adoption
        return ConfigState(
            version=now.version,
            waiting=now.waiting,
            own_toml=settings.to_toml(now.own),
            problem=now.problem,
        )

    def on_change(self, listener: Callable[[ClusterConfig], None]) -> None:
        """`listener`, the only one, is called with what it runs with when hot keys have changed."""
        self._listener = listener

    async def refresh(self, clients: RpcClients, mgmtd: str) -> None:
        """Before anything else is started: get the newest version, so that no key waits; without mgmtd the copy is."""
        for left in reversed(range(len(parse_addresses(mgmtd)))):
            try:
                version = await clients.call(mgmtd, methods.Mgmtd.get_config, Empty(), timeout_s=START_S)
                break
            except Error as error:  # the next call goes to the next manager
                if not left:
                    log.info(
                        "settings of the cluster: the last known are used, mgmtd did not answer: %s", error
                    )
                    return
        if version.version not in (0, self._latest.version):
            self._latest = version
            self._adoption = _started(self._adoption.kind, self._adoption.own, version)
            self._news.set()

    def heard(self, version: int) -> None:
        """Note which version mgmtd has. 0, none, is no reason to forget one: its store may be a new one."""
        if version not in (0, self._adoption.version):
            self._heard = version
            self._news.set()

    def take(self, version: ConfigVersion) -> None:
        """Adopt a version: hot keys now."""
        if version.version in (0, self._adoption.version):
            return
        before = self._adoption
        try:
            self._adoption = before.adopted(version.version, settings.parse(version.toml))
        except ConfigError as error:
            log.error("settings of the cluster, version %d: cannot be read: %s", version.version, error)  # noqa: TRY400
            return
        self._latest = version
        self._news.set()
        now = self._adoption
        log.info(
            "settings of the cluster: version %d adopted%s%s",
            version.version,
            f"; at the next start: {', '.join(now.waiting)}" if now.waiting else "",
            f"; not used here: {now.problem}" if now.problem else "",
        )
        if now.running != before.running and self._listener is not None:
            self._listener(now.running)

    async def follow(self, clients: RpcClients, mgmtd: str) -> NoReturn:
        """Get each version that was heard of, and keep the copy. Return never."""
        await self._follow(partial(clients.call, mgmtd, methods.Mgmtd.get_config, Empty(), timeout_s=CALL_S))

    async def keep(self) -> NoReturn:
        """Keep the copy, where mgmtd itself `take`s each version. Return never."""
        await self._follow(None)

    async def _follow(self, fetch: Fetch | None) -> NoReturn:
        while True:
            unsaved = self._saved != self._latest.version
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), SAVE_AGAIN_S if unsaved else None)
            self._news.clear()
            if fetch is not None and self._heard not in (0, self._adoption.version):
                before = self._adoption
                try:
                    version = await fetch()
                    if self._adoption is before:  # else mgmtd, now the primary, has taken one from its store
                        self.take(version)
                except Error as error:  # the next heartbeat says it again
                    log.warning("settings of the cluster: version %d not got: %s", self._heard, error)
                self._heard = 0
            if self._saved != self._latest.version:
                await self._save(self._latest)

    async def _save(self, version: ConfigVersion) -> None:
        text = json.dumps({"version": version.version, "toml": version.toml})
        try:
            await asyncio.to_thread(write_private, self._copy, text)
        except OSError as error:
            log.warning("settings of the cluster: %s cannot be written: %s", self._copy, error)
        else:
            self._saved = version.version


def _own(file: Path | None) -> settings.Settings:
    if file is None:
        return {}
    try:
        return settings.parse(read_text(file))
    except ConfigError as error:
        message = error.message if error.message.startswith(f"{file}: ") else f"{file}: {error.message}"
        raise ConfigError(message) from error


def _started(kind: str, own: settings.Settings, version: ConfigVersion) -> Adoption:
    begun = Adoption.start(kind, own, version.version, settings.parse(version.toml))
    if begun.problem:
        log.error(
            "settings of the cluster, version %d, are not used here: %s", version.version, begun.problem
        )
    return begun


def _read_copy(path: Path) -> ConfigVersion:
    try:
        found = json.loads(read_private(path))
        version = ConfigVersion(version=found["version"], toml=found["toml"])
        settings.parse(version.toml)
    except FileNotFoundError:
        return ConfigVersion()
    except (Error, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("settings of the cluster: the copy %s cannot be read: %s", path, error)
        return ConfigVersion()
    return version


__all__ = ["AdoptedConfig", "copy_path", "newest_copy"]
