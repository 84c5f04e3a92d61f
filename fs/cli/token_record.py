"""Which tokens were made with a data directory's secret: DATA/tokens, one JSON object a line, without keys.

A token is valid whether it is there or not, since each holder of the secret may make some elsewhere. It is there so
that an operator finds what to revoke.
"""

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Final, TypedDict

from ..errors import InvalidArgument
from ..wire import Token, read_private, write_private
from ..wire.credentials import ADMIN, CLIENT, SERVICE, TRUSTED

KEPT_MAX: Final = 65_536  # as many as can be revoked; the oldest are left out
ROLES: Final = {CLIENT: "client", TRUSTED: "trusted", ADMIN: "admin", SERVICE: "service"}


class TokenState(TypedDict):
    """What a token says, as commands print it. `expires_unix_s` None: never."""

    id: str
    role: str
    uid: int
    gid: int
    groups: list[int]
    path: str | None
    read_only: bool
    networks: list[str]
    cluster: str | None
    key: int
    minted_unix_s: int | None
    expires_unix_s: int | None


def describe(token: Token) -> TokenState:
    """Return what `token` says. Raises: Unauthenticated if it cannot be read."""
    claims = token.described()
    return {
        "id": token.id,
        # The number of a role that this release does not know is shown as it is.
        "role": ROLES.get(claims.role, str(claims.role)),
        "uid": claims.uid,
        "gid": claims.gid,
        "groups": list(claims.groups),
        "path": os.fsdecode(claims.path) if claims.root else None,
        "read_only": claims.read_only,
        "networks": list(claims.networks),
        "cluster": claims.audience or None,
        "key": claims.key_id,
        "minted_unix_s": claims.minted_unix_s or None,
        "expires_unix_s": claims.expires_unix_s or None,
    }


def has_expired(token: TokenState) -> bool:
    """Return whether it has, by this machine's clock."""
    return token["expires_unix_s"] is not None and token["expires_unix_s"] <= time.time()


def remember(path: Path, token: Token) -> None:
    """Add `token` to the file at `path`. Raises: OSError; InvalidArgument if the file is damaged."""
    lock = os.open(
        path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = [each for each in remembered(path) if not has_expired(each)]
        lines = [json.dumps(each) for each in [*kept, describe(token)][-KEPT_MAX:]]
        write_private(path, "\n".join(lines) + "\n")
    finally:
        os.close(lock)


def remembered(path: Path) -> list[TokenState]:
    """Return the tokens in the file at `path`, the oldest first; none if there is no file.

    Raises: PermissionDenied if it is another user's; InvalidArgument if it is damaged.
    """
    try:
        found: list[TokenState] = [json.loads(line) for line in read_private(path).splitlines()]
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise InvalidArgument("damaged; move it away, what it lists stays valid", path=str(path)) from error
    if not all(isinstance(each, dict) and TokenState.__required_keys__ <= each.keys() for each in found):
        raise InvalidArgument("damaged; move it away, what it lists stays valid", path=str(path))
    return found


__all__ = ["TokenState", "describe", "has_expired", "remember", "remembered"]
