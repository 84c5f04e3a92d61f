"""How much of a bounded table one of several users may take: never all that is left for the others.

A user may take another place while it has fewer than `PARTS` times those that are free. One alone gets 7 of 8 places;
of two that want all, each gets 7 of 15; and whatever some take, a user who has few finds a place.
"""

from typing import Final

PARTS: Final = 7


def may_take(own: int, *, used: int, limit: int) -> bool:
    """Return whether who has `own` of `limit` places, of which `used` are taken, may take another."""
    assert 0 <= own <= used, "what one has is taken"
    return own < PARTS * (limit - used)


__all__ = ["may_take"]
