"""Every process of a real cluster shows what it counts, as docs/metrics.md lists it."""

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric

from cluster import LocalCluster, luciola, until
from etcd_members import EtcdMembers
from luciola.metrics.endpoint import socket_path
from meta_processes import METAS, Metas
from scrape import asked, connected, ours, scrape, total

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
SECTION = re.compile(r"^## (\w+)", re.MULTILINE)
ROW = re.compile(r"^\| `(luciola_\w+)(?:\{([\w, ]+)\})?` \|", re.MULTILINE)
CONNECTIONS = 1000
KINDS = {"mgmtd", "meta", "storage", "mount"}


def documented() -> dict[str, dict[str, set[str]]]:
    """What docs/metrics.md says: the labels of each name, by section."""
    _, *parts = SECTION.split(DOCS.read_text())
    return {
        title.lower(): {
            name: set(labels.split(", ")) if labels else set() for name, labels in ROW.findall(text)
        }
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }


def addresses(cluster: LocalCluster, kind: str) -> list[str]:
    """Where the processes of that kind show their metrics."""
    return [service["metrics"] for service in cluster.services(kind)]


@pytest.fixture
def scraped(shared_cluster: LocalCluster, mounted_dir: Path) -> dict[str, list[dict[str, Metric]]]:
    """The families of every process of a cluster that was used, by kind."""
    (mounted_dir / "large").write_bytes(os.urandom(3 << 20))
    (mounted_dir / "small").write_text("x")
    assert len((mounted_dir / "large").read_bytes()) == 3 << 20
    return {kind: [scrape(address) for address in addresses(shared_cluster, kind)] for kind in KINDS}


@pytest.mark.mount
def test_status_says_where_each_process_shows_its_metrics(shared_cluster: LocalCluster) -> None:
    shown = {service["kind"] for service in shared_cluster.status()["services"] if "metrics" in service}
    assert shown == KINDS
    assert all(address.startswith("unix:/") for kind in KINDS for address in addresses(shared_cluster, kind))


@pytest.mark.mount
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_page_lists_what_a_process_shows(scraped: dict[str, list[dict[str, Metric]]], kind: str) -> None:
    sections = documented()
    known = sections["every"] | sections[kind]
    if kind == "mount":
        del known["luciola_requests_total"], known["luciola_request_duration_seconds"]
    if kind in ("meta", "mgmtd"):
        known |= sections["stores"]
    for families in scraped[kind]:
        assert ours(families) == set(known)
        for name in known:
            labels = {label for sample in families[name].samples for label in sample.labels} - {"le"}
            assert labels == known[name] or not families[name].samples, name
            assert families[name].documentation, name


@pytest.mark.mount
def test_labels_are_few_and_name_no_file(
    scraped: dict[str, list[dict[str, Metric]]], mounted_dir: Path
) -> None:
    for families in (each for all_of_kind in scraped.values() for each in all_of_kind):
        for family in families.values():
            for sample in family.samples:
                assert all(re.fullmatch(r"[\w.+-]*", value) for value in sample.labels.values()), sample
                assert not any(mounted_dir.name in value for value in sample.labels.values()), sample


@pytest.mark.mount
def test_counters_rise_with_work(shared_cluster: LocalCluster, mounted_dir: Path) -> None:
    (mount,), (meta,) = addresses(shared_cluster, "mount"), addresses(shared_cluster, "meta")
    storage = addresses(shared_cluster, "storage")

    def counted() -> dict[str, float]:
        of_mount, of_meta, of_nodes = scrape(mount), scrape(meta), [scrape(each) for each in storage]
        mount_requests = ("luciola_mount_requests_total", "")
        return {
            "made": total(of_meta, "luciola_requests_total", service="Meta", method="Create", outcome="ok"),
            "timed": total(
                of_meta,
                "luciola_request_duration_seconds",
                "luciola_request_duration_seconds_count",
                method="Create",
            ),
            "absent": total(of_mount, *mount_requests, operation="lookup"),
            "writes timed": total(
                of_mount,
                "luciola_mount_request_duration_seconds",
                "luciola_mount_request_duration_seconds_count",
                operation="write",
            ),
            "writes": total(of_mount, *mount_requests, operation="write", outcome="ok"),
            "written": total(of_mount, "luciola_mount_written_bytes_total"),
            "read": total(of_mount, "luciola_mount_read_bytes_total"),
            "written back": total(of_mount, "luciola_mount_written_back_bytes_total"),
            "stored": sum(total(each, "luciola_storage_update_bytes_total") for each in of_nodes),
        }

    before = counted()
    for number in range(5):
        path = mounted_dir / str(number)
        assert not path.exists()
        with path.open("wb") as file:
            file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert len(path.read_bytes()) == 1 << 20
    lowest = {
        "made": 5,
        "timed": 5,
        "absent": 5,
        "writes": 5,
        "writes timed": 5,
        "written": 5 << 20,
        "read": 5 << 20,
        "written back": 5 << 20,
        "stored": 5 << 20,
    }

    def has_risen() -> bool:
        after = counted()
        return all(after[name] - before[name] >= least for name, least in lowest.items())

    until(has_risen, what=f"counters above {before}")


@pytest.mark.mount
def test_gauges_of_a_healthy_cluster(shared_cluster: LocalCluster) -> None:
    shared_cluster.wait_healthy()
    chains = len(shared_cluster.status()["chains"])

    def is_well() -> bool:
        (manager,), (meta,) = (
            [scrape(address) for address in addresses(shared_cluster, kind)] for kind in ("mgmtd", "meta")
        )
        nodes = [scrape(address) for address in addresses(shared_cluster, "storage")]
        return (
            total(manager, "luciola_mgmtd_primary") == total(meta, "luciola_meta_primary") == 1
            and total(manager, "luciola_chains", state="complete") == chains
            and total(manager, "luciola_chains") == chains
            and total(manager, "luciola_node_leases") == len(nodes) == 3
            and total(manager, "luciola_nodes", kind="storage", status="connected") == 3
            and total(manager, "luciola_client_sessions") >= 1
            and sum(total(each, "luciola_storage_targets", state="serving") for each in nodes) == 2 * chains
            and all(total(each, "luciola_storage_lease_left_seconds") > 0 for each in nodes)
            and all(
                total(each, "luciola_storage_free_bytes") <= total(each, "luciola_storage_capacity_bytes")
                for each in nodes
            )
            and total(meta, "luciola_inodes") >= 1
        )

    until(is_well, what="the metrics of a healthy cluster")


@pytest.mark.mount
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_hostile_clients_leave_the_process_well(
    shared_cluster: LocalCluster, mounted_dir: Path, kind: str
) -> None:
    (address, *_) = addresses(shared_cluster, kind)
    pids = [service["pid"] for service in shared_cluster.services(kind)]
    with ExitStack() as held:
        for number in range(CONNECTIONS):
            raw = held.enter_context(connected(address))
            if number % 3:
                raw.sendall((b"GET /metrics HTTP/1.1\r\n", b"a" * 100)[number % 2])
        (mounted_dir / "made").write_bytes(b"meanwhile" * 100_000)
        assert (mounted_dir / "made").stat().st_size == 900_000
        assert ours(scrape(address))
    assert asked(address, b"GET /" + b"a" * 100_000)[0] == 431
    assert ours(scrape(address))
    assert [service["pid"] for service in shared_cluster.services(kind)] == pids
    assert shared_cluster.status()["healthy"]


@pytest.fixture(scope="module")
def with_ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A cluster whose processes show their metrics on free ports."""
    root = tmp_path_factory.mktemp("ports")
    config = '[metrics]\nlisten = "127.0.0.1:0"\n'
    with LocalCluster(root, storage_nodes=1, replicas=1, config=config) as cluster:
        yield cluster


def test_ports_are_named_in_files_for_prometheus(with_ports: LocalCluster) -> None:
    found = [json.loads(path.read_text()) for path in with_ports.data.glob("*.metrics.json")]
    labels = {(target["labels"]["kind"], target["labels"]["id"]) for (target,) in found}
    assert labels == {("mgmtd", "1"), ("meta", "100"), ("storage", "201")}
    targets = {target["targets"][0] for (target,) in found}
    assert targets == {service["metrics"] for service in with_ports.status()["services"]}
    assert all(ours(scrape(target)) for target in targets)


def test_metrics_can_be_off(tmp_path: Path) -> None:
    config = '[metrics]\nlisten = "off"\n'
    with LocalCluster(tmp_path, storage_nodes=1, replicas=1, config=config) as cluster:
        assert cluster.status()["healthy"]
        assert not [service for service in cluster.status()["services"] if "metrics" in service]
        assert not list(cluster.data.glob("*.metrics.*"))


def test_configuration_that_shows_metrics_to_others_needs_consent(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[metrics]\nlisten = "0.0.0.0:0"\n')
    refused = luciola("up", "--data", str(tmp_path / "data"), "--config", str(config), check=False)
    assert refused.returncode != 0
    assert "metrics.allow_remote = true" in refused.stderr


@pytest.fixture
def metas(etcd_members: EtcdMembers, tmp_path: Path) -> Iterator[Metas]:
    config = "[metadata]\ncheckpoint_records = 1\n"
    with Metas(tmp_path, etcd_members, config=config) as cluster:
        yield cluster


class Scraped:
    """What the two services show; nothing while their process does not run."""

    def __init__(self, metas: Metas) -> None:
        self._metas = metas

    def names(self, number: int) -> set[str]:
        return ours(self._families(number))

    def value(self, number: int, name: str, sample: str = "") -> float | None:
        families = self._families(number)
        return total(families, name, sample) if name in families else None

    def role(self, number: int) -> str:
        family = self._families(number).get("luciola_replica_role")
        samples = family.samples if family is not None else ()
        return next((sample.labels["role"] for sample in samples if sample.value), "")

    def address(self, number: int) -> str:
        return f"unix:{socket_path(self._metas.store_of(number))}"

    def _families(self, number: int) -> dict[str, Metric]:
        try:
            return scrape(self.address(number))
        except (ConnectionError, FileNotFoundError):
            return {}


@pytest.mark.timeout(900)
def test_role_and_lag_follow_a_take_over(metas: Metas) -> None:
    shown = Scraped(metas)
    lag, terms = "luciola_replica_lag_records", "luciola_replica_terms_total"
    metas.wait(lambda: sorted(map(shown.role, METAS)) == ["primary", "standby"], "a primary and a standby")
    primary, standby = sorted(METAS, key=shown.role)
    pages = documented()
    followed = {*pages["every"], *pages["stores"], *pages["log"]}
    metas.wait(lambda: shown.names(primary) == followed | set(pages["meta"]), "all of docs/metrics.md")
    metas.wait(lambda: shown.names(standby) == followed | {"luciola_meta_primary"}, "the log, of a standby")
    metas.wait(lambda: shown.value(standby, lag) == 0, "a standby that is not behind")
    assert (shown.value(standby, terms), shown.value(primary, terms)) == (0, 1)
    appends = "luciola_log_append_duration_seconds"
    assert shown.value(primary, appends, f"{appends}_count")
    epoch = shown.value(primary, "luciola_replica_epoch")
    assert epoch
    metas.signal(primary, signal.SIGKILL)
    metas.wait(lambda: shown.role(standby) == "primary", "another primary")
    metas.wait(lambda: shown.value(standby, "luciola_meta_primary") == 1, "service by it")
    assert shown.value(standby, terms) == 1
    metas.wait(lambda: (shown.value(standby, "luciola_replica_epoch") or 0) > epoch, "a record of its term")
    assert shown.role(primary) == ""
    metas.start_meta(primary)
    metas.wait(lambda: shown.value(primary, lag) == 0, "the first one, not behind")
    assert (shown.role(primary), shown.value(primary, "luciola_meta_primary")) == ("standby", 0)
