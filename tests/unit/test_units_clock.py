"""Sizes as people write them; a clock that tests turn."""

import asyncio
import subprocess
import sys
import textwrap
from pathlib import Path

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


@pytest.mark.parametrize("text", ["", "K", "-1", "1X", "1 2", "0x10", "9" * 400, f"{'9' * 308}P"])
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


def after_an_hour_of_sleep(script: str) -> str:
    """What a script prints in a time namespace whose boot clock is an hour ahead, as after a suspension."""
    in_namespace = ["unshare", "--time", "--boottime", "3600"]
    if subprocess.run([*in_namespace, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("time namespaces need root")
    command = [*in_namespace, sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_system_clock_counts_the_time_of_suspensions() -> None:
    ahead = after_an_hour_of_sleep("""
        import time
        from luciola.clock import SystemClock
        print(round(SystemClock().monotonic() - time.monotonic()))
    """)
    assert ahead == "3600"


def test_lease_of_a_storage_node_runs_out_while_its_machine_sleeps(tmp_path: Path) -> None:
    """A node that takes a moment of the boot clock for one of another clock would serve for an hour more."""
    status = after_an_hour_of_sleep(f"""
        from pathlib import Path
        from luciola.clock import boot_s
        from luciola_core import StorageNode
        top = Path({str(tmp_path)!r})
        node = StorageNode(1, top / "chunks", secret=bytes(32), socket=top / "socket", reserve_bytes=0)
        node.set_lease(boot_s() + 60, 0)
        print(0 < node.lease_left_s() <= 60)
        node.stop()
    """)
    assert status == "True"
