"""Where a process shows its metrics, and that it works where it cannot."""

import asyncio
import json
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from luciola.config import MetricsConfig
from luciola.metrics import Exposition, address_of, exposed, exposed_from_thread, gauge
from luciola.metrics.endpoint import socket_path, targets_path
from scrape import asked, scrape, total

LABELS = {"kind": "meta", "id": "100"}


def shown_by(config: MetricsConfig, base: Path, look: Callable[[str], object]) -> object:
    """What `look` finds, given the address, while metrics are shown."""
    shown = Exposition("meta")
    shown.add("service", lambda: [gauge("luciola_g", "G.", 4)])
    with exposed_from_thread(config, base, shown, labels=LABELS) as address:
        return look(address)


def value(address: str) -> float:
    return total(scrape(address), "luciola_g")


def test_socket_beside_the_data_is_for_its_user_alone(tmp_path: Path) -> None:
    base = tmp_path / "meta"

    def look(address: str) -> int:
        assert address == address_of(base) == f"unix:{base}.metrics.sock"
        assert value(address) == 4
        return stat.S_IMODE(socket_path(base).stat().st_mode)

    assert shown_by(MetricsConfig(), base, look) == 0o600
    assert list(tmp_path.iterdir()) == []
    assert address_of(base) == ""


def test_long_path_of_a_socket_is_no_obstacle(tmp_path: Path) -> None:
    base = tmp_path / ("d" * 120) / "meta"
    base.parent.mkdir()
    assert shown_by(MetricsConfig(), base, value) == 4
    assert list(base.parent.iterdir()) == []


def test_port_is_named_in_a_file_of_targets(tmp_path: Path) -> None:
    base = tmp_path / "meta"

    def look(address: str) -> object:
        assert value(address) == 4
        assert address == address_of(base)
        assert stat.S_IMODE(targets_path(base).stat().st_mode) == 0o600
        return json.loads(targets_path(base).read_text())

    (found,) = shown_by(MetricsConfig(listen="127.0.0.1:0"), base, look)  # type: ignore[misc]
    assert found["labels"] == LABELS
    assert found["targets"][0].startswith("127.0.0.1:")
    assert list(tmp_path.iterdir()) == []


def test_nothing_listens_where_metrics_are_off(tmp_path: Path) -> None:
    base = tmp_path / "meta"
    socket_path(base).touch()
    targets_path(base).write_text("[]")
    assert shown_by(MetricsConfig(listen="off"), base, lambda address: address) == ""
    assert list(tmp_path.iterdir()) == []


def test_socket_of_a_killed_process_is_replaced(tmp_path: Path) -> None:
    base = tmp_path / "meta"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(socket_path(base)))
    assert shown_by(MetricsConfig(), base, value) == 4


def test_socket_of_a_living_process_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = tmp_path / "meta"

    def look(address: str) -> float:
        assert shown_by(MetricsConfig(), base, lambda second: second) == ""
        return value(address)

    assert shown_by(MetricsConfig(), base, look) == 4
    assert "another process shows its metrics" in caplog.text


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_process_works_without_a_port_that_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, loop: str
) -> None:
    import uvloop

    async def run(port: int) -> str:
        config = MetricsConfig(listen=f"127.0.0.1:{port}")
        async with exposed(config, tmp_path / "meta", Exposition("meta"), labels=LABELS) as address:
            return address

    with socket.create_server(("127.0.0.1", 0)) as taken:
        runner = asyncio.run if loop == "asyncio" else uvloop.run
        assert runner(run(taken.getsockname()[1])) == ""
    assert "no metrics are shown" in caplog.text


def test_process_works_without_a_directory_for_its_socket(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert shown_by(MetricsConfig(), tmp_path / "none" / "meta", lambda address: address) == ""
    assert "no metrics are shown" in caplog.text


def test_services_show_metrics_in_their_own_loop(tmp_path: Path) -> None:
    import uvloop

    base = tmp_path / "meta"

    async def run() -> int:
        async with exposed(MetricsConfig(), base, Exposition("meta"), labels=LABELS) as address:
            status, _, _ = await asyncio.to_thread(asked, address)
            return status

    assert uvloop.run(run()) == 200
    assert list(tmp_path.iterdir()) == []
