"""Which of several addresses of one service a caller uses: the one that answered last.

A service of which one process is primary has one address for each process, with commas between them. A standby refuses
every request with Unavailable and `primary` in its fields: it has executed nothing.
"""

from collections.abc import Callable

from ..errors import Error, Timeout, Unavailable
from .addresses import parse_addresses


class Endpoints:
    """The addresses of one service, in order, and which is used now."""

    def __init__(self, addresses: str) -> None:
        self._addresses = parse_addresses(addresses)
        self._current = 0
        self._moves: list[Callable[[], object]] = []

    @property
    def current(self) -> str:
        """The address that the next call goes to."""
        return self._addresses[self._current]

    def __len__(self) -> int:
        return len(self._addresses)

    def failed(self, address: str, error: Error) -> None:
        """Change to another address if `address` is the current one, and another may serve what it failed."""
        if address != self.current or not isinstance(error, Unavailable | Timeout):
            return
        primary = error.fields.get("primary", "")
        if primary in self._addresses and primary != address:
            self._current = self._addresses.index(primary)
        else:
            self._current = (self._current + 1) % len(self._addresses)
        if self.current != address:
            for move in tuple(self._moves):
                move()

    def on_move(self, move: Callable[[], object]) -> Callable[[], None]:
        """Call `move` each time another address becomes current, until what this returns is called."""
        self._moves.append(move)
        return lambda: self._moves.remove(move)


def was_refused(error: Error) -> bool:
    """Return whether a standby refused the request: it may be sent to another process, whatever it does."""
    return isinstance(error, Unavailable) and "primary" in error.fields


__all__ = ["Endpoints", "was_refused"]
