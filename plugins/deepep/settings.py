"""What is chosen for a whole process: by environment variables, read here and nowhere else.

LUCIOLA_DEEPEP_TRANSPORT       shared-memory, messages, …: instead of the best that all ranks can use
LUCIOLA_DEEPEP_TIMEOUT_S       how long a rank waits for another, 100 by default
LUCIOLA_DEEPEP_RANKS_PER_NODE  how many ranks make a node, for two-hop dispatch; by default all of one host

Arguments of `Buffer` come first.
"""

import os
from typing import Final

from ..kernels.errors import refuse

TIMEOUT_S: Final = 100.0
"""The original's."""


def transport_name() -> str:
    """The backend that the environment asks for, or "auto"."""
    return os.environ.get("LUCIOLA_DEEPEP_TRANSPORT") or "auto"


def timeout_s() -> float:
    """How long a rank waits for another."""
    text = os.environ.get("LUCIOLA_DEEPEP_TIMEOUT_S")
    if not text:
        return TIMEOUT_S
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        refuse("LUCIOLA_DEEPEP_TIMEOUT_S", repr(text), "it must be a positive number of seconds")
    return value


def ranks_per_node() -> int | None:
    """How many ranks make a node, if the environment says so."""
    text = os.environ.get("LUCIOLA_DEEPEP_RANKS_PER_NODE")
    if not text:
        return None
    if not text.isdecimal() or int(text) == 0:
        refuse("LUCIOLA_DEEPEP_RANKS_PER_NODE", repr(text), "it must be a positive number")
    return int(text)


__all__ = ["TIMEOUT_S", "ranks_per_node", "timeout_s", "transport_name"]
