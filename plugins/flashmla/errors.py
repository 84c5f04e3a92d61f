"""What bad arguments raise.

The original raises RuntimeError where its C++ refuses a tensor and AssertionError where its Python does, and ends the
process where a kernel does. Here each is also the error that Python has for it, and the process lives.
"""

from typing import NoReturn


class BadArgument(ValueError, RuntimeError):
    """A shape, stride, device or value that the operator does not take."""


class BadType(TypeError, RuntimeError):
    """A dtype, or an object that is no tensor."""


class BadCall(ValueError, AssertionError):
    """Arguments that do not belong together, or a schedule made for another call."""


def refuse(name: str, what: object, allowed: str) -> NoReturn:
    raise BadArgument(f"{name} is {what}; {allowed}")


__all__ = ["BadArgument", "BadCall", "BadType", "refuse"]
