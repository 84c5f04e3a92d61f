"""Which tests run where."""

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


def get_arch_major() -> int:
    """The major compute capability of the current device.

    Raises: RuntimeError without a CUDA device.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("there is no CUDA device here")
    return int(torch.cuda.get_device_capability()[0])


def test_filter(condition: Callable[[], bool]) -> Callable[[Callable[..., object]], Callable[..., None]]:
    """A decorator: calls run if the condition holds then, else they say that they did not."""

    def decorate(function: Callable[..., object]) -> Callable[..., None]:
        @wraps(function)
        def run(*arguments: Any, **keywords: Any) -> None:
            if condition():
                function(*arguments, **keywords)
            else:
                print(f"{function.__name__}: not on this machine")  # noqa: T201 (it is for test programs)

        return run

    return decorate


def ignore_env(
    name: str, condition: Callable[[], bool]
) -> Callable[[Callable[..., object]], Callable[..., None]]:
    """A decorator: calls run without that environment variable if the condition holds then."""

    def decorate(function: Callable[..., object]) -> Callable[..., None]:
        @wraps(function)
        def run(*arguments: Any, **keywords: Any) -> None:
            saved = os.environ.pop(name, None) if condition() else None
            try:
                function(*arguments, **keywords)
            finally:
                if saved is not None:
                    os.environ[name] = saved

        return run

    return decorate


test_filter.__test__ = False  # type: ignore[attr-defined]  # pytest: it is no test

__all__ = ["get_arch_major", "ignore_env", "test_filter"]
