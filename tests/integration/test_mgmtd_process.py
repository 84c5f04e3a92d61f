"""The manager as a process: start, stop, kill -9, and the state it comes back with."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from lane_client import LaneClient
from luciola.cli.datadir import free_ports
from luciola.errors import Error, PermissionDenied, Unauthenticated
from luciola.wire import (
    ADMIN,
    CLIENT,
    SERVICE,
    Cluster,
    RpcClients,
    Token,
    create_secret,
    methods,
    mint,
    save_cluster,
)
from luciola.wire.credentials import TRUSTED
from luciola.wire.pb import mgmtd_pb2 as pb

START_S = 100.0


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    create_secret(tmp_path / "secret")
    lane, grpc = (f"127.0.0.1:{port}" for port in free_ports(2))
    made = Cluster("test", lane, grpc, str(tmp_path / "secret"))
    save_cluster(tmp_path / "cluster.json", made)
    return made


def start(cluster: Cluster, *arguments: str) -> subprocess.Popen[str]:
    directory = Path(cluster.secret_file).parent
    return subprocess.Popen(
        [
            sys.executable,
            *("-m", "luciola.mgmtd", "--data", str(directory / "mgmtd")),
            *("--cluster", str(directory / "cluster.json"), "--create", *arguments),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


@contextmanager
def running(cluster: Cluster, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = start(cluster, *arguments)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


async def call(cluster: Cluster, method, request, *, role=SERVICE, address: str = ""):
    async with RpcClients(mint(cluster.secret(), role=role)) as clients:
        return await clients.call(address or cluster.mgmtd_grpc, method, request, timeout_s=START_S)


def routing(cluster: Cluster) -> pb.Routing:
    """What it publishes, as soon as it answers."""

    async def ask() -> pb.Routing:
        deadline = time.monotonic() + START_S
        while True:
            try:
                return await call(cluster, methods.Mgmtd.get_routing, pb.GetRoutingRequest())
            except Error:
                assert time.monotonic() < deadline, "the manager does not answer"
                await asyncio.sleep(0.05)

    return asyncio.run(ask())


def beat(cluster: Cluster, node: int, *, sequence: int = 1, chains=()) -> pb.HeartbeatReply:
    request = pb.HeartbeatRequest(
        node=pb.Node(id=node, kind=pb.NODE_STORAGE, incarnation=7, pid=9, grpc_address=f"n:{node}"),
        sequence=sequence,
    )
    for chain in chains:
        for target in chain.targets:
            if target.node == node:
                request.targets.add(
                    id=target.id, chain=chain.id, chain_version=chain.version, state=pb.LOCAL_UPTODATE
                )
    return asyncio.run(call(cluster, methods.Mgmtd.heartbeat, request))


def without_life(found: pb.Routing) -> tuple:
    """What has to survive: not who was alive."""
    chains = [
        (chain.id, chain.version, [(target.id, target.node, target.state) for target in chain.targets])
        for chain in sorted(found.chains, key=lambda chain: chain.id)
    ]
    nodes = sorted(
        (node.id, node.kind, node.grpc_address, node.incarnation) for node in found.nodes if node.id > 1
    )
    return chains, nodes, [(table.id, table.version, list(table.chains)) for table in found.tables]


def test_state_survives_kill_and_clean_stop(cluster):
    with running(cluster) as process:
        routing(cluster)
        for node in (11, 12, 13):
            assert beat(cluster, node).lease_ms == 3000
        request = pb.CreateChainTableRequest(table=1, replicas=2)
        asyncio.run(call(cluster, methods.Mgmtd.create_chain_table, request))
        before = routing(cluster)
        assert len(before.chains) == 9
        process.send_signal(signal.SIGKILL)  # right after the acknowledgement
        process.wait()
    config = Path(cluster.secret_file).parent / "config.toml"
    config.write_text("[mgmtd]\nbootstrap_ms = 200000\n")
    with running(cluster, "--config", str(config)) as process:
        after = routing(cluster)
        assert after.version > before.version
        assert after.bootstrapping
        assert without_life(after) == without_life(before)
        beats = [beat(cluster, node, sequence=2, chains=after.chains) for node in (11, 12, 13)]
        assert [reply.lease_ms for reply in beats] == [0, 0, 3000]  # none before all have reported
        process.send_signal(signal.SIGTERM)
        assert process.wait(START_S) == 0
    with running(cluster):
        assert without_life(routing(cluster)) == without_life(before)


def test_second_process_is_refused_and_names_the_first(cluster):
    with running(cluster) as first:
        routing(cluster)
        second = start(cluster)
        _, errors = second.communicate(timeout=START_S)
        assert second.returncode == 1
        assert f"in use by process {first.pid}" in errors


def test_records_of_another_cluster_are_refused(cluster):
    with running(cluster):
        routing(cluster)
    save_cluster(Path(cluster.secret_file).parent / "cluster.json", replace(cluster, cluster_id="other"))
    stranger = start(cluster)
    _, errors = stranger.communicate(timeout=START_S)
    assert stranger.returncode == os.EX_CONFIG
    assert "these records belong to cluster 'test', not to 'other'" in errors


def test_configuration_file_counts_and_mistakes_are_named(cluster, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text("[mgmtd]\nheartbeat_interval_ms = 700\n")
    with running(cluster, "--config", str(file)):
        routing(cluster)
        assert beat(cluster, 11).interval_ms == 700
    file.write_text("[mgmtd]\nlease_ms = 100\n")
    wrong = start(cluster, "--config", str(file))
    _, errors = wrong.communicate(timeout=START_S)
    assert wrong.returncode == os.EX_CONFIG
    assert "mgmtd.lease_ms: must be at least two heartbeat intervals" in errors


def test_roles_and_strangers(cluster):
    with running(cluster):
        routing(cluster)
        create = pb.CreateChainTableRequest(table=1, replicas=1)
        with pytest.raises(PermissionDenied):
            asyncio.run(call(cluster, methods.Mgmtd.create_chain_table, create, role=CLIENT))
        with pytest.raises(PermissionDenied):
            asyncio.run(call(cluster, methods.Mgmtd.heartbeat, pb.HeartbeatRequest(), role=ADMIN))
        with LaneClient(cluster.mgmtd_lane, mint(cluster.secret(), role=CLIENT)) as client:
            assert client.call(methods.Mgmtd.get_routing, pb.GetRoutingRequest(), timeout_s=START_S).nodes
        stranger = Token(mint(cluster.secret()).claims, b"\x00" * 32)
        with LaneClient(cluster.mgmtd_lane, stranger) as client, pytest.raises(Unauthenticated):
            client.call(methods.Mgmtd.get_routing, pb.GetRoutingRequest(), timeout_s=START_S)


def test_streams_of_routing_are_for_services(cluster):
    with running(cluster):
        routing(cluster)

        async def follow(role) -> None:
            async with RpcClients(mint(cluster.secret(), role=role)) as clients:
                stream = clients.stream(
                    cluster.mgmtd_grpc, methods.Mgmtd.stream_routing, pb.GetRoutingRequest()
                )
                await anext(stream)

        for role in (CLIENT, TRUSTED, ADMIN):
            with pytest.raises(PermissionDenied):
                asyncio.run(follow(role))


def test_stream_ends_when_the_process_stops(cluster):
    with running(cluster) as process:
        routing(cluster)

        async def follow() -> None:
            async with RpcClients(mint(cluster.secret(), role=SERVICE)) as clients:
                stream = clients.stream(
                    cluster.mgmtd_grpc, methods.Mgmtd.stream_routing, pb.GetRoutingRequest()
                )
                assert (await anext(stream)).nodes
                process.send_signal(signal.SIGTERM)
                with pytest.raises(Error):
                    while True:
                        await anext(stream)

        asyncio.run(follow())
        assert process.wait(START_S) == 0
