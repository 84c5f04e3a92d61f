"""The versions of the cluster's configuration: what the next one says, and which old ones are forgotten.

C1  versions only grow: the next is above every one that any process has adopted, also after a rebuild of the store
C2  the last HISTORY_MAX versions are kept, each whole
"""

from typing import Final

from .. import settings
from ..errors import NotFound
from ..settings import Settings
from ..wire.credentials import Identity
from ..wire.pb import mgmtd_pb2 as pb
from ..wire.pb.common_pb2 import Claims
from .records import Change, Records

HISTORY_MAX: Final = 100  # of 64 KiB at most each


def current(records: Records) -> pb.ConfigVersion:
    """Return the newest version; number 0, which says nothing, if none was ever set."""
    return records.configs[max(records.configs)] if records.configs else pb.ConfigVersion()


def changed(  # noqa: PLR0913, what a version says
    records: Records,
    request: pb.SetConfigRequest,
    *,
    own: Settings,
    author: str,
    unix_ms: int,
    seen: int = 0,
) -> Change:
    """Return what to store for `request`. `own`: of the primary's file; `seen`: the highest version of any process.

    Raises: ConfigError naming all bad keys; NotFound if the version to go back to is not kept.
    """
    before = current(records)
    after = _settings(records, before, request)
    settings.check(after)
    settings.effective(after, own)
    if after == settings.parse(before.toml):
        return Change()
    number = max(before.version, seen) + 1
    version = pb.ConfigVersion(version=number, toml=settings.to_toml(after), unix_ms=unix_ms, author=author)
    old = sorted(records.configs)[: max(0, len(records.configs) + 1 - HISTORY_MAX)]
    return Change(configs=(version,), forgotten_configs=tuple(old))


def _settings(records: Records, before: pb.ConfigVersion, request: pb.SetConfigRequest) -> Settings:
    if request.HasField("revert_to"):
        wanted = request.revert_to
        if wanted and wanted not in records.configs:
            raise NotFound(f"version {wanted} is not kept; `luciola config history` shows those that are")
        return settings.parse(records.configs[wanted].toml) if wanted else {}
    kept = settings.parse(before.toml)
    settings.require_known(key for key in request.unset if key not in kept)  # one of another release can go
    after = kept | settings.parse(request.toml)
    return {key: value for key, value in after.items() if key not in request.unset}


def author_of(identity: Identity) -> str:
    """Return who that is, as the history says it."""
    role = Claims.Role.Name(identity.role).lower()
    return f"{role} uid {identity.uid}" + (f" token {identity.token.hex()}" if identity.token else "")


__all__ = ["HISTORY_MAX", "author_of", "changed", "current"]
