import asyncio

import pytest

from luciola.errors import InvalidArgument, NotFound, Timeout, Unavailable
from luciola.wire import ADMIN, RpcClients, RpcServer, methods, mint
from luciola.wire.failover import Endpoints, was_refused
from luciola.wire.pb.meta_pb2 import LookupRequest

from .service import SECRET, Service, bound

CALL_S = 100.0


def test_address_that_answers_stays_in_use():
    endpoints = Endpoints("a:1,b:1,c:1")
    assert endpoints.current == "a:1"
    endpoints.failed("a:1", NotFound("the service answered"))
    assert endpoints.current == "a:1"


@pytest.mark.parametrize("error", [Unavailable("gone"), Timeout("late"), Unavailable("standby", primary="")])
def test_unavailable_service_is_called_at_each_address_in_turn(error):
    endpoints = Endpoints("a:1,b:1,c:1")
    seen = []
    for _ in range(4):
        seen.append(endpoints.current)
        endpoints.failed(endpoints.current, error)
    assert seen == ["a:1", "b:1", "c:1", "a:1"]


def test_primary_that_a_standby_names_is_called_next():
    endpoints = Endpoints("a:1,b:1,c:1")
    endpoints.failed("a:1", Unavailable("standby", primary="c:1"))
    assert endpoints.current == "c:1"


def test_late_failure_of_an_address_that_was_left_moves_nothing():
    endpoints = Endpoints("a:1,b:1")
    endpoints.failed("a:1", Timeout("late"))
    endpoints.failed("a:1", Timeout("late"))
    assert endpoints.current == "b:1"


def test_listeners_hear_moves_until_they_leave():
    endpoints = Endpoints("a:1,b:1")
    moves = []
    leave = endpoints.on_move(lambda: moves.append(endpoints.current))
    endpoints.failed("a:1", Unavailable("gone"))
    leave()
    endpoints.failed("b:1", Unavailable("gone"))
    assert moves == ["b:1"]


def test_sole_address_stays_and_no_listener_hears_of_it():
    endpoints = Endpoints("a:1")
    endpoints.on_move(lambda: pytest.fail("there is nowhere to go"))
    endpoints.failed("a:1", Unavailable("gone"))
    assert endpoints.current == "a:1"


def test_only_a_standby_has_executed_nothing():
    assert was_refused(Unavailable("standby", primary=""))
    assert not was_refused(Unavailable("connection lost"))
    assert not was_refused(Timeout("late"))


def test_addresses_that_cannot_be_read_are_refused():
    with pytest.raises(InvalidArgument):
        Endpoints("a:1,,b:1")


def test_requests_that_a_standby_refuses_reach_the_primary_and_stay_there():
    class Standby(Service):
        refused = 0

        def lookup(self, request, identity):
            self.refused += 1
            raise Unavailable("not the primary", primary=primary)

    primary = ""

    async def main() -> None:
        nonlocal primary
        standby = Standby()
        servers = [RpcServer(bound(each), secret=SECRET) for each in (standby, Service(), Service())]
        try:
            addresses = [await server.start() for server in servers]
            primary = addresses[2]
            async with RpcClients(mint(SECRET, role=ADMIN)) as clients:
                for _ in range(2):
                    reply = await clients.call(
                        ",".join(addresses), methods.Meta.lookup, LookupRequest(parent=7), timeout_s=CALL_S
                    )
                    assert reply.inode.id == 7
                assert clients._service(",".join(addresses)).current == primary
            assert standby.refused == 1
        finally:
            for server in servers:
                await server.stop(grace_s=0)

    asyncio.run(main())


def test_call_whose_outcome_is_unknown_is_the_callers_to_repeat():
    async def main() -> None:
        server = RpcServer(bound(Service()), secret=SECRET)
        try:
            address = await server.start()
            await server.stop(grace_s=0)
            other = RpcServer(bound(Service()), secret=SECRET)
            addresses = f"{address},{await other.start()}"
            try:
                async with RpcClients(mint(SECRET, role=ADMIN)) as clients:
                    request = LookupRequest(parent=7)
                    with pytest.raises(Unavailable):
                        await clients.call(addresses, methods.Meta.lookup, request, timeout_s=CALL_S)
                    reply = await clients.call(addresses, methods.Meta.lookup, request, timeout_s=CALL_S)
                    assert reply.inode.id == 7
            finally:
                await other.stop(grace_s=0)
        finally:
            await server.stop(grace_s=0)

    asyncio.run(main())
