"""What is chosen for a whole process: by environment variables, read here and nowhere else.

LUCIOLA_DEEPEP_TRANSPORT       shared-memory, collectives, …: instead of the best that all ranks can use
LUCIOLA_DEEPEP_TIMEOUT_S       how long a rank waits for another, 100 by default

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


__all__ = ["TIMEOUT_S", "timeout_s", "transport_name"]
