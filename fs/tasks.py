"""Tasks that belong together."""

import asyncio
from collections.abc import Awaitable


async def first_end(*works: Awaitable[object]) -> None:
    """Run all of `works` until one of them ends; raise its error, if it has one."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


__all__ = ["first_end"]
