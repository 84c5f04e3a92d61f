"""A thread that gives a native client each new token and certificate, so that it outlives its first ones."""

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ..errors import Error, InvalidArgument
from ..wire.credentials import format_unix_s
from ..wire.tls import Tls
from ..wire.token_source import Source

if TYPE_CHECKING:
    import luciola_core

    from ..wire.credentials import Token

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0  # the native client waits three times as long for what replaces a refused token
WARN_S: Final = 600.0  # before a token ends that nothing replaces, or a tenth of its life if that is shorter


class Renewal:
    """Follows `source`, whose token `shown` `client` has. `client` returns None when there is none any more.

    `tls`: whence certificates, those that `client` has; `read_tls`: the same of a new token.
    """

    def __init__(
        self,
        source: Source,
        shown: "Token",
        client: "Callable[[], luciola_core.Client | None]",
        *,
        tls: Tls | None = None,
        read_tls: "Callable[[], Tls | None]" = lambda: None,
    ) -> None:
        self._tls = tls
        self._read_tls = read_tls
        self._material = None if tls is None else tls.current()
        self._source = source
        self._shown = shown
        self._client = client
        self._said = ""
        self._ended = threading.Event()

    def start(self) -> None:
        """Look each LOOK_S from now on, in a thread that ends with the process, the client or `stop`."""
        threading.Thread(target=self._run, name="token", daemon=True).start()

    def stop(self) -> None:
        """Follow no longer."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(LOOK_S) and self.look():
            pass

    def look(self) -> bool:
        """Hand over the source's token if it is a new one; return whether there is a client still."""
        client = self._client()
        if client is None:
            return False
        try:
            token = self._source(refused=client.is_token_refused)
            if token != self._shown:
                _require_same_limits(self._shown, token)
                client.set_token(token.claims, token.key)
                self._shown = token
                self._tls = self._read_tls() or self._tls
                log.info("a new token is used: %s (%s)", self._source.name, token.id)
            self._renew_certificate(client)
        except (Error, OSError) as error:
            self._say(f"{self._source.name} is not renewed: {error}")
        else:
            self._warn(token)
        return True

    def _renew_certificate(self, client: "luciola_core.Client") -> None:
        material = None if self._tls is None else self._tls.current()
        if material is not None and material != self._material:
            client.set_certificates(material.native())
            self._material = material
            log.info("a new certificate is used")

    def _warn(self, token: "Token") -> None:
        claims = token.described()
        life_s = claims.expires_unix_s - claims.minted_unix_s
        if claims.expires_unix_s and claims.expires_unix_s - time.time() < min(WARN_S, life_s / 10):
            expires = format_unix_s(claims.expires_unix_s)
            self._say(f"{self._source.name} expires at {expires}; replace it by a new one before")
        else:
            self._said = ""

    def _say(self, text: str) -> None:
        if text != self._said:
            log.warning("%s", text)
        self._said = text


def _require_same_limits(before: "Token", after: "Token") -> None:
    """Raises: InvalidArgument where services would take the client for another one."""
    then, now = before.described(), after.described()
    if (then.root, then.read_only) != (now.root, now.read_only):
        raise InvalidArgument("the new token opens another directory, or is read-only: connect again")


__all__ = ["Renewal"]
