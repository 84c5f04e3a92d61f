"""Threads that wait for the native client, which releases the GIL meanwhile: for whole calls, and for their parts.

Calls wait for parts and parts for nothing of ours, so neither kind can use up the threads that it waits for. Each
process has its own; they are made when they are first needed.
"""

import asyncio
import functools
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

CALLS: Final = 16
PARTS: Final = 8

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


@functools.cache
def _pool(name: str, threads: int, _process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, f"luciola-fsspec-{name}")


def parts() -> ThreadPoolExecutor:
    """For work that waits for no other work here."""
    return _pool("parts", PARTS, os.getpid())


async def in_thread(
    work: Callable[Parameters, Result], *arguments: Parameters.args, **named: Parameters.kwargs
) -> Result:
    """Carry out a call that may wait."""
    pool = _pool("calls", CALLS, os.getpid())
    return await asyncio.get_running_loop().run_in_executor(
        pool, functools.partial(work, *arguments, **named)
    )


def awaitable(method: Callable[Parameters, Result]) -> Callable[Parameters, Coroutine[object, None, Result]]:
    """Return the coroutine function that does what a method does."""

    @functools.wraps(method)
    async def call(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        return await in_thread(method, *arguments, **named)

    return call


__all__ = ["awaitable", "in_thread", "parts"]
