"""`luciola doctor`: whether this machine, its disks and its paths to a cluster suit."""

import asyncio
import time
from typing import Final, TypedDict

import click

from ..errors import Timeout, Unavailable
from ..wire import parse_address, parse_addresses
from ..wire.pb import mgmtd_pb2 as pb
from .administration import ClusterTarget, cluster_options
from .datadir import DataDir
from .findings import Finding, Severity, worst
from .health import find_clock_skew, find_services
from .machine import Check, check_machine, judge_disk, look_at
from .mgmtd_client import MgmtdClient, clock_ahead_s
from .options import json_option
from .output import print_json
from .supervisor import directory_of, storage_nodes

CONNECT_S: Final = 2.0  # of one address: longer is not reachable
SLOW_S: Final = 0.01  # of one address in one data centre: far more than a round trip
ATTEMPTS: Final = 3  # of which the fastest counts: machines that are busy are late at times
RELEASED: Final = ("RELEASES_DIFFER",)  # of what routing shows, what is looked at here


class Examined(TypedDict):
    """One check. `severity`: ok, warning or error; `code` and `remedy` are empty if it is ok."""

    check: str
    severity: str
    what: str
    code: str
    remedy: str


@click.command()
@cluster_options
@json_option
def doctor(cluster: ClusterTarget, *, as_json: bool) -> None:
    """Check this machine, and from here a cluster: limits, FUSE, disks, addresses, clocks, releases.

    Works without a cluster, and with one that is down: what cannot be asked is named. `luciola health` says what is
    wrong within a cluster. Exits with 0 if all is well, 1 for warnings, 2 for errors.

    \b
    Examples:
      luciola doctor
      luciola doctor --data /var/lib/luciola
    """
    checks = check_machine()
    if cluster.data_path is not None:
        checks += _disks(DataDir(cluster.data_path.absolute()))
    if cluster.data_path is not None or cluster.manager is not None:
        checks += _cluster(cluster)
    found = [check.finding for check in checks if check.finding is not None]
    if as_json:
        print_json([_examined(check) for check in checks])
    else:
        _print(checks)
    if severity := worst(found):
        raise click.exceptions.Exit(int(severity))


def _disks(data: DataDir) -> list[Check]:
    """Look at each file system that has something of the cluster, once."""
    shape = data.read_shape()
    wanted = [data.root, data.root / directory_of("mgmtd", "1"), data.root / "meta"]
    wanted += [data.root / directory_of("storage", str(node)) for node in storage_nodes(shape)]
    seen: set[int] = set()
    checks = []
    for directory in wanted:
        try:
            device = directory.stat().st_dev
            if device not in seen:
                seen.add(device)
                checks.append(judge_disk(look_at(directory)))
        except FileNotFoundError:  # not made yet, or by another name
            continue
        except OSError as error:
            what = f"{directory}: {error.strerror}"
            checks.append(Check(f"disk of {directory}", what, Finding("DISK_ERRORS", what, str(directory))))
    return checks


def _cluster(cluster: ClusterTarget) -> list[Check]:
    """Look at a cluster from here."""
    known = _addresses(cluster)
    checks = asyncio.run(_reach(known))
    if all(check.finding is not None and check.finding.code == "ADDRESS_UNREACHABLE" for check in checks):
        return checks
    try:
        routing, offsets = cluster.ask(_asked)
    except (Unavailable, Timeout) as error:
        what = f"mgmtd does not answer: {error}"
        return [*checks, Check("mgmtd", what, Finding("MGMTD_DOWN", what, "mgmtd"))]
    published = {
        f"{_name(node)} {kind}": address
        for node in routing.nodes
        if node.status not in (pb.FAILED, pb.DISABLED)
        for kind, address in (
            ("control", node.grpc_address),
            ("requests", node.lane_address),
            ("data", node.data_address),
        )
        if address and address not in known.values()
    }
    return [*checks, *asyncio.run(_reach(published)), *_clocks(offsets), *_releases(routing)]


def _addresses(cluster: ClusterTarget) -> dict[str, str]:
    """Return where mgmtd should be, by name."""
    if cluster.data_path is None:
        assert cluster.manager is not None, "a cluster is named"
        addresses = cluster.manager
    else:
        addresses = DataDir(cluster.data_path.absolute()).read_shape().cluster.mgmtd_grpc
    return {f"mgmtd {index}": address for index, address in enumerate(parse_addresses(addresses), 1)}


async def _reach(addresses: dict[str, str]) -> list[Check]:
    """Try each address."""
    times = await asyncio.gather(*map(_best_s, addresses.values()))
    return [
        judge_address(name, address, taken)
        for (name, address), taken in zip(addresses.items(), times, strict=True)
    ]


async def _best_s(address: str) -> float | str:
    """Return the shortest time of several connections, which is that of the path, or why there is none."""
    times: list[float] = []
    for _ in range(ATTEMPTS):
        taken = await _connect_s(address)
        if isinstance(taken, str):
            return taken
        times.append(taken)
    return min(times)


async def _connect_s(address: str) -> float | str:
    """Return how long a connection takes to be there, or why it does not come."""
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(*parse_address(address))
    except TimeoutError:
        return f"no answer within {CONNECT_S:.0f} s"
    except OSError as error:
        return error.strerror or str(error)
    taken_s = time.monotonic() - began_s
    writer.close()
    return taken_s


def judge_address(name: str, address: str, taken: float | str) -> Check:
    """Judge a path by the time of a connection, or by why there is none."""
    if isinstance(taken, str):
        what = f"{name} at {address} cannot be reached: {taken}"
        return Check(f"address of {name}", what, Finding("ADDRESS_UNREACHABLE", what, address))
    what = f"{name} at {address} is reached in {taken * 1000:.2f} ms"
    finding = Finding("ADDRESS_SLOW", what, address) if taken > SLOW_S else None
    return Check(f"address of {name}", what, finding)


async def _asked(ask: MgmtdClient) -> tuple[pb.Routing, dict[str, float]]:
    """Return routing, and how far each clock is ahead of the one here, in seconds."""
    routing = await ask.routing(patience_s=0)
    offsets = {f"node {node}": each.ahead_s for node, each in (await ask.storage_statuses(routing)).items()}
    began_s = time.time()
    sessions = await ask.sessions()
    offsets["mgmtd"] = clock_ahead_s(sessions.unix_ms, asked_s=began_s)
    began_s = time.time()
    if (files := await ask.client_files(routing)) is not None:
        offsets["meta"] = clock_ahead_s(files.unix_ms, asked_s=began_s)
    return routing, offsets


def _clocks(offsets: dict[str, float]) -> list[Check]:
    found = find_clock_skew(offsets | {"this machine": 0.0})
    if found:
        return [Check(f"clock of {each.where}", each.what, each) for each in found]
    most_s = max(map(abs, offsets.values()), default=0.0)
    return [Check("clocks", f"{len(offsets)} services, at most {most_s * 1000:.0f} ms from the clock here")]


def _releases(routing: pb.Routing) -> list[Check]:
    found = [each for each in find_services(routing) if each.code in RELEASED]
    if found:
        return [Check("releases", each.what, each) for each in found]
    releases = sorted({node.release for node in routing.nodes if node.release})
    return [Check("releases", f"all services are of release {', '.join(releases)}")]


def _name(node: pb.Node) -> str:
    return f"{pb.NodeKind.Name(node.kind).removeprefix('NODE_').lower()} {node.id}"


def _examined(check: Check) -> Examined:
    finding = check.finding
    return {
        "check": check.name,
        "severity": (Severity.OK if finding is None else finding.severity).name.lower(),
        "what": check.what,
        "code": "" if finding is None else finding.code,
        "remedy": "" if finding is None else finding.remedy,
    }


def _print(checks: list[Check]) -> None:
    for check in checks:
        if check.finding is None:
            click.echo(f"ok       {check.name}: {check.what}")
        else:
            click.echo(f"{check.finding.severity.name:8} {check.finding.code}: {check.what}")
            click.echo(f"         remedy: {check.finding.remedy}")


__all__ = ["doctor", "judge_address"]
