"""A watcher without a network: what it asks for, and what it makes of the answers."""

import asyncio

import pytest

from luciola.client.connection import Parameters
from luciola.client.watch import AsyncWatch, Call, Follower, Pause, TooOld, Watch, follower_of
from luciola.config import ClientConfig
from luciola.errors import InvalidArgument, NotFound, PermissionDenied, Timeout, Unauthenticated, Unavailable
from luciola.wire import rpc
from luciola.wire.credentials import create_secret, mint, save_token
from luciola.wire.methods import Meta, Mgmtd
from luciola.wire.pb import meta_pb2 as pb
from luciola.wire.pb.mgmtd_pb2 import CONNECTED, FAILED, NODE_META, Node, Routing

METAS = [
    Node(id=100, kind=NODE_META, status=CONNECTED, grpc_address="old:1", epoch=4),
    Node(id=101, kind=NODE_META, status=CONNECTED, grpc_address="new:1", epoch=7),
    Node(id=102, kind=NODE_META, status=FAILED, grpc_address="dead:1", epoch=9),
]
CREATED = pb.NamespaceChange(kind=pb.CHANGE_CREATE, path=b"f", inode=20, type=pb.REGULAR, position="2-0-aa")
REMOVED = pb.NamespaceChange(kind=pb.CHANGE_REMOVE, path=b"", inode=5, type=pb.DIRECTORY, position="3-0-aa")


def follower(*, managers=("m:1", "m:2"), after=None, patience_s=60.0):
    return Follower(managers, "/d", after=after, recursive=True, patience_s=patience_s)


def perform(steps, answers):
    """What `steps` returns, given `answers` to its calls in turn, and the calls."""
    calls, left = [], list(answers)
    try:
        step = next(steps)
        while True:
            if isinstance(step, Pause):
                step = steps.send(None)
                continue
            calls.append(step)
            answer = left.pop(0)
            step = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
    except StopIteration as end:
        assert not left
        return end.value, calls


def reply(*changes, position="9-0-aa"):
    return pb.WatchReply(directory=5, position=position, changes=changes)


def test_service_with_the_newest_term_is_asked():
    one = follower()
    changes, calls = perform(one.steps(wait_s=1.5), [Routing(nodes=METAS), reply(CREATED)])
    assert [(call.address, call.method) for call in calls] == [
        ("m:1", Mgmtd.get_routing),
        ("new:1", Meta.watch),
    ]
    assert calls[1].request.path == pb.Path(path=b"/d")
    assert calls[1].request.wait_ms == 1500
    assert [(change.kind, change.path, change.type) for change in changes] == [("create", "/d/f", "file")]
    assert one.position == "9-0-aa"
    _, calls = perform(one.steps(wait_s=0), [reply()])
    assert calls[0].request.path == pb.Path(at=5)
    assert calls[0].request.after == "9-0-aa"


@pytest.mark.parametrize("failure", [Unavailable("gone"), Timeout("no answer")])
def test_next_primary_is_asked_from_the_same_position(failure):
    one = follower(after="1-0-aa")
    answers = [Routing(nodes=METAS[:1]), failure, failure, Routing(nodes=METAS), reply(CREATED)]
    changes, calls = perform(one.steps(wait_s=0), answers)
    assert [call.address for call in calls] == ["m:1", "old:1", "m:1", "m:2", "new:1"]
    assert calls[-1].request.after == "1-0-aa"
    assert len(changes) == 1


def test_service_that_never_answers_is_given_up():
    with pytest.raises(Unavailable, match="no metadata service"):
        perform(follower(managers=["m:1"], patience_s=-1.0).steps(wait_s=0), [Routing()])


def test_refusals_are_not_repeated():
    with pytest.raises(PermissionDenied):
        perform(follower().steps(wait_s=0), [Routing(nodes=METAS), PermissionDenied("no")])
    with pytest.raises(TooOld, match="list again"):
        perform(follower().steps(wait_s=0), [Routing(nodes=METAS), NotFound("list again", too_old=True)])


def test_removal_of_the_directory_is_the_end():
    one = follower()
    changes, _ = perform(one.steps(wait_s=0), [Routing(nodes=METAS), reply(CREATED, REMOVED, CREATED)])
    assert [(change.kind, change.path) for change in changes] == [("create", "/d/f"), ("remove", "/d")]
    assert one.has_ended
    assert one.position == "3-0-aa"


def test_name_that_leaves_has_no_path():
    left = pb.NamespaceChange(kind=pb.CHANGE_RENAME, old_path=b"x/\xff", inode=20, position="2-0-aa")
    (change,), _ = perform(follower().steps(wait_s=0), [Routing(nodes=METAS), reply(left)])
    assert (change.kind, change.path, change.old_path) == ("rename", None, "/d/x/\udcff")


def test_cluster_at_an_address_needs_a_manager():
    parameters = Parameters("host:1", None, None, ClientConfig())
    with pytest.raises(InvalidArgument, match="manager=HOST:PORT"):
        follower_of(parameters, "d", after=None, recursive=True, manager=None)
    one = follower_of(parameters, "d", after=None, recursive=True, manager="a:1,b:1")
    assert one.path == "/d"
    step = next(one.steps(wait_s=0))
    assert isinstance(step, Call)
    assert step.address == "a:1"


class Refusing:
    """A service, or several, that refuses the first token; who comes with another is answered that nothing is there."""

    def __init__(self):
        self.shown = []

    def answer(self, token):
        self.shown.append(token())
        if len(set(self.shown)) == 1:
            raise Unauthenticated("revoked")
        raise NotFound("nothing here")


class RefusingClient:
    """`RpcClient` of `refusing`."""

    refusing: Refusing

    def __init__(self, address, token, *, tls):
        self._token = token

    def call(self, *_, timeout_s):
        return self.refusing.answer(self._token)

    def close(self):
        pass


class RefusingClients(RefusingClient):
    """`RpcClients` of `refusing`."""

    def __init__(self, token, *, tls):
        super().__init__("", token, tls=tls)

    async def call(self, *_, timeout_s):
        return self.refusing.answer(self._token)


@pytest.fixture
def refusing(monkeypatch):
    RefusingClient.refusing = Refusing()
    monkeypatch.setattr(rpc, "RpcClient", RefusingClient)
    monkeypatch.setattr(rpc, "RpcClients", RefusingClients)
    return RefusingClient.refusing


def begin(parameters, kind):
    """The first calls of a watch, which find nothing there."""
    if kind is Watch:
        with pytest.raises(NotFound, match="nothing here"):
            Watch(parameters, follower()).begin()
    else:
        with pytest.raises(NotFound, match="nothing here"):
            asyncio.run(AsyncWatch(parameters, follower()).begin())


@pytest.mark.parametrize("kind", [Watch, AsyncWatch])
def test_refused_token_that_was_made_with_the_secret_is_made_again(kind, refusing, tmp_path):
    create_secret(tmp_path / "secret")
    begin(Parameters("host:1", str(tmp_path / "secret"), None, ClientConfig()), kind)
    assert len(set(refusing.shown)) == 2


@pytest.mark.parametrize("kind", [Watch, AsyncWatch])
def test_refused_token_that_nothing_replaces_is_said(kind, refusing, tmp_path):
    save_token(tmp_path / "token", mint(bytes(32)))
    parameters = Parameters("host:1", None, None, ClientConfig(), token_file=str(tmp_path / "token"))
    with pytest.raises(Unauthenticated, match="revoked"):
        begin(parameters, kind)
    assert len(refusing.shown) == 1
