"""Sizes as people write them; a clock that tests turn."""

import asyncio

import pytest

from luciola.clock import ManualClock, SystemClock
from luciola.units import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("4096", 4096),
        ("64K", 65_536),
        ("64 kib", 65_536),
        ("1.5GiB", 1_610_612_736),
        ("2T", 2 << 40),
        ("1B", 1),
    ],
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "K", "-1", "1X", "1 2", "0x10"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write a number and"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 50, "3072.0 TiB")]
)
def test_sizes_are_written(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_manual_clock_wakes_sleepers_in_time() -> None:
    async def scenario() -> list[str]:
        clock, woken = ManualClock(), []

        async def sleeper(name: str, duration_s: float) -> None:
            await clock.sleep(duration_s)
            woken.append(name)

        tasks = [asyncio.create_task(sleeper("late", 2)), asyncio.create_task(sleeper("early", 1))]
        await asyncio.sleep(0)
        clock.advance(1.5)
        await asyncio.sleep(0)
        assert woken == ["early"]
        clock.advance(1)
        await asyncio.gather(*tasks)
        return woken

    assert asyncio.run(scenario()) == ["early", "late"]


def test_system_clock_goes_forward() -> None:
    clock = SystemClock()
    first = clock.monotonic(), clock.unix_ns()
    asyncio.run(clock.sleep(0.001))
    assert clock.monotonic() > first[0]
    assert clock.unix_ns() > first[1]
