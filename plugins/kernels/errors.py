"""What bad arguments of a kernel raise.

The originals raise RuntimeError where their C++ refuses a tensor and AssertionError where their Python does. Here each
is also the error that Python has for it: callers catch either.
"""

from typing import NoReturn


class BadArgument(ValueError, RuntimeError):
    """A shape, stride, device or value that the operator does not take."""


class BadType(TypeError, RuntimeError):
    """A dtype, or an object that is no tensor."""


class BadCall(ValueError, AssertionError):
    """Arguments that do not belong together, or a schedule made for another call."""


def refuse(name: str, what: object, allowed: str) -> NoReturn:
    """Raise BadArgument: what was given, and what is allowed."""
    raise BadArgument(f"{name} is {what}; {allowed}")


__all__ = ["BadArgument", "BadCall", "BadType", "refuse"]
