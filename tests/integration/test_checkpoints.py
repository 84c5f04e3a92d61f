"""Two metadata services over a log that is trimmed: one loses its disk, and is paused for too long, and comes back."""

import asyncio
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import luciola
from etcd_members import EtcdMembers
from luciola.config import ClientConfig
from luciola.errors import Timeout, Unavailable
from luciola.kv.replicated import checkpoints_of
from meta_processes import METAS, Metas, Positions

RECORDS = 40  # between two checkpoints
KEPT = 5
CONFIG = f"""
[metadata]
checkpoint_records = {RECORDS}
kept_records = {KEPT}
copies = 1
"""


@pytest.fixture
def cluster(etcd_members: EtcdMembers, tmp_path: Path) -> Iterator[Metas]:
    with Metas(tmp_path, etcd_members, config=CONFIG) as cluster:
        yield cluster


def wait_positions(cluster: Metas, condition: Callable[[Positions], bool], what: str) -> None:
    seen: list[object] = []

    def is_there() -> bool:
        try:
            seen.append(asyncio.run(cluster.positions()))
        except (Unavailable, Timeout) as error:
            seen.append(error)
        return isinstance(seen[-1], Positions) and condition(seen[-1])

    try:
        cluster.wait(is_there, what)
    except AssertionError as error:
        raise AssertionError(f"{error}: {seen[-1]}, {cluster.last_words()}") from None


@pytest.mark.timeout(1500)
def test_service_that_is_behind_a_trimmed_log_begins_with_a_checkpoint_of_the_other(cluster: Metas) -> None:
    fs = luciola.connect(
        cluster.cluster.mgmtd_lane,
        secret_file=cluster.root / cluster.cluster.secret_file,
        config=ClientConfig(deadline_ms=100_000),
    )
    made = 0

    def work() -> int:
        """Make some records; return the last one's index before."""
        nonlocal made
        last = asyncio.run(cluster.positions()).last
        for _ in range(3 * RECORDS):
            fs.mkdir(f"/{made}")
            made += 1
        return last

    def trimmed_beyond(index: int) -> Callable[[Positions], bool]:
        return lambda found: found.first > index + 1 and found.last - found.first < RECORDS + KEPT

    try:
        last = work()
        wait_positions(cluster, trimmed_beyond(last), "a log that was trimmed")

        primary = cluster.wait_primary()
        standby = next(number for number in METAS if number != primary.id)
        cluster.signal(standby, signal.SIGTERM)
        shutil.rmtree(cluster.store_of(standby))
        shutil.rmtree(checkpoints_of(cluster.store_of(standby)))
        cluster.start_meta(standby)
        cluster.wait(
            lambda: cluster.log_of(standby).count("restoring checkpoint") == 1, "a fetched checkpoint"
        )
        wait_positions(
            cluster, lambda found: found.checkpoints.get(standby, 0) > 0, "a standby with a checkpoint"
        )

        cluster.signal(standby, signal.SIGSTOP)
        wait_positions(cluster, trimmed_beyond(work()), "a log that was trimmed beyond a paused standby")
        cluster.signal(standby, signal.SIGCONT)
        cluster.wait(lambda: cluster.log_of(standby).count("restoring checkpoint") == 2, "a second one")

        cluster.signal(primary.id, signal.SIGKILL)
        cluster.wait_primary(above=primary.epoch)
        assert {int(name) for name in fs.listdir("/")} == set(range(made))
        cluster.start_meta(primary.id)
        fs.mkdir(f"/{made}")
    finally:
        fs.close()
    first, second = cluster.end_metas()
    assert first == second
