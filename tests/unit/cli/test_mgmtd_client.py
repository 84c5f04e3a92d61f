"""What commands ask of mgmtd when that is away, late, or does not speak at all."""

import asyncio
import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from luciola.cli import cli
from luciola.cli.datadir import DataDir, Shape
from luciola.cli.mgmtd_client import MgmtdClient
from luciola.errors import Error, NotFound, Timeout, Unavailable
from luciola.wire import SERVICE, Cluster, RpcClients, RpcServer, methods, mint
from luciola.wire.credentials import create_secret
from luciola.wire.pb import mgmtd_pb2 as pb
from luciola.wire.pb.storage_pb2 import StorageStatus

SECRET = bytes(range(32))


class Mgmtd:
    """Fails as often as asked to, then makes tables."""

    def __init__(self, *failures: Error) -> None:
        self.failures, self.tables, self.nodes = list(failures), [], []

    def get_routing(self, *_):
        if self.failures:
            raise self.failures.pop(0)
        return pb.Routing(tables=self.tables, nodes=self.nodes)

    def create_chain_table(self, request, _):
        self.tables.append(pb.ChainTable(id=request.table))
        return pb.ChainTable(id=request.table)

    def status(self, *_):
        return StorageStatus(counters={"rdma_fallbacks": 3, "reads": 5})

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *_: pytest.fail(f"unexpected call of {name}")


def run(mgmtd, test):
    async def main():
        bound = [*methods.bind(methods.Mgmtd, mgmtd), *methods.bind(methods.Storage, mgmtd)]
        server = RpcServer(bound, secret=SECRET)
        address = await server.start()
        try:
            async with RpcClients(mint(SECRET, role=SERVICE)) as clients:
                await test(MgmtdClient(address, clients), address)
        finally:
            await server.stop(grace_s=0.5)

    asyncio.run(main())


def test_a_table_is_asked_for_again_while_mgmtd_is_away_or_late():
    mgmtd = Mgmtd(Unavailable("away"), Timeout("late"))

    async def test(manager, _):
        answers = [await manager.has_table(1, replicas=3) for _ in range(4)]
        assert answers == [False, False, True, True]
        assert [table.id for table in mgmtd.tables] == [1]

    run(mgmtd, test)


def test_of_several_managers_the_primary_answers_and_changes_something(tmp_path: Path) -> None:
    """The first is dead, the second hangs, the third is a standby."""
    mgmtd, standby = Mgmtd(), Mgmtd(*[Unavailable("this manager is a standby", primary="")] * 10)
    mgmtd.update_chain = lambda request, _: pb.Chain(id=request.chain)

    async def main():
        servers = [RpcServer(methods.bind(methods.Mgmtd, each), secret=SECRET) for each in (standby, mgmtd)]
        addresses = [await server.start() for server in servers]
        try:
            await reach(addresses)
        finally:
            await asyncio.gather(*(server.stop(grace_s=0.5) for server in servers))

    async def reach(addresses):
        with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as dead:
            dead.bind(("127.0.0.1", 0))  # and does not listen
            first = [f"127.0.0.1:{each.getsockname()[1]}" for each in (dead, silent)]
            secret_file = tmp_path / "secret"
            secret_file.write_text(SECRET.hex())
            secret_file.chmod(0o600)
            cluster = Cluster("test", "", ",".join([*first, *addresses]), str(secret_file))
            async with MgmtdClient.connect(cluster) as manager:
                assert (await manager.update_chain(3, pb.UpdateChainRequest.ADD)).id == 3
            async with MgmtdClient.connect(cluster) as manager:
                assert await manager.answers()

    asyncio.run(main())


def test_counters_are_those_of_a_storage_node():
    mgmtd = Mgmtd()

    async def test(manager, address):
        mgmtd.nodes = [
            pb.Node(id=100, kind=pb.NODE_META, grpc_address=address),
            pb.Node(id=201, kind=pb.NODE_STORAGE, grpc_address=address),
        ]
        assert list((await manager.counters(201)).items()) == [("rdma_fallbacks", 3), ("reads", 5)]
        for other in (100, 7):
            with pytest.raises(NotFound, match=f"no storage node {other}"):
                await manager.counters(other)

    run(mgmtd, test)


def test_status_of_a_cluster_whose_manager_hangs_is_still_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luciola.cli.mgmtd_client.CALL_S", 0.5)
    data = DataDir(tmp_path / "data")
    data.create()
    create_secret(data.secret)
    with socket.create_server(("127.0.0.1", 0)) as silent, data.supervised():
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        data.write_shape(Shape(Cluster("test", address, address, str(data.secret)), 3, 3))
        done = CliRunner().invoke(cli, ["status", "--data", str(data.root), "--json"])
    report = json.loads(done.stdout)
    assert (done.exit_code, report["healthy"]) == (1, False)
    assert "no answer within 0.5 s" in report["error"]
