"""What a storage node remembers of the stores of mgmtd and meta, and what it recognises by that."""

import pytest

from luciola.errors import ConfigError
from luciola.storage.marks import FORMAT, NAME, MarkFile, load
from luciola.wire.pb.mgmtd_pb2 import (
    OFFLINE,
    SERVING,
    Chain,
    ChainTable,
    Marks,
    Revocations,
    RevokedToken,
    Routing,
    StoreMark,
    Target,
)

TABLE = ChainTable(id=1, version=1, chains=[1, 2], replicas=2)


def chain(number: int, version: int, *nodes: int) -> Chain:
    targets = [Target(id=number * 10 + node, node=node, state=SERVING, used_bytes=7) for node in nodes]
    return Chain(id=number, version=version, targets=targets, changed_at=5)


def routing(term: int, *chains: Chain, manager: int = 1, counter: int = 1, delta: bool = False) -> Routing:
    tables = [] if delta else [TABLE]
    version = term << 32 | counter
    return Routing(version=version, manager=manager, chains=chains, tables=tables, delta=delta)


@pytest.fixture
def marks(tmp_path) -> MarkFile:
    """Node 1, which has seen term 5 and holds a replica of chain 1 in version 9."""
    made = MarkFile(tmp_path, node=1)
    adopt(made, routing(5, chain(1, 9, 1, 2), chain(2, 4, 2, 3)))
    return made


def adopt(marks: MarkFile, seen: Routing) -> None:
    assert marks.outdated(seen) == ""
    marks.raise_to(seen)
    marks.save()


def test_new_directory_admits_everything(tmp_path):
    marks = MarkFile(tmp_path, node=1)
    assert marks.outdated(routing(1, chain(1, 1, 1))) == ""
    assert load(tmp_path) is None


def test_marks_survive_a_restart(marks, tmp_path):
    again = MarkFile(tmp_path, node=1)
    assert again.marks == marks.marks
    assert [(each.id, each.version) for each in again.marks.chains] == [(1, 9)]
    assert list(again.marks.tables) == [TABLE]
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (routing(4, chain(1, 9, 1), manager=9), "term 5 of mgmtd, not 4"),
        (routing(5, chain(1, 9, 1), manager=9), "term 5 of mgmtd, not 5"),
        (routing(6, chain(1, 8, 1), manager=9), "version 9 of chain 1, not 8"),
        (routing(6, chain(1, 8, 2), manager=9), "version 9 of chain 1, not 8"),
        (routing(6, manager=9), "version 9 of chain 1, not none"),
        (routing(5, chain(1, 8, 1), delta=True), "version 9 of chain 1, not 8"),
    ],
)
def test_older_store_is_recognised(marks, tmp_path, seen, reason):
    assert marks.outdated(seen) == reason
    assert MarkFile(tmp_path, node=1).outdated(seen) == reason


def test_next_term_and_later_deltas_are_admitted(marks):
    adopt(marks, routing(5, chain(1, 10, 1, 2), counter=2, delta=True))
    adopt(marks, routing(5, counter=3, delta=True))
    adopt(marks, routing(6, chain(1, 10, 1, 2), chain(2, 4, 2, 3), manager=2))
    assert marks.marks.term == 6
    assert "term 6" in marks.outdated(routing(5, chain(1, 10, 1, 2)))


def test_what_does_not_raise_a_mark_is_not_written(marks):
    assert not marks.raise_to(routing(5, counter=2, delta=True))
    assert not marks.raise_to(routing(5, chain(1, 9, 1, 2), counter=2, delta=True))
    assert not marks.raise_to(routing(5, chain(2, 5, 2, 3), counter=2, delta=True))
    assert marks.raise_to(routing(5, chain(1, 10, 1, 2), counter=2, delta=True))
    assert marks.raise_to(routing(5, counter=3, delta=True)), "what could not be saved is tried again"


def test_chain_that_a_node_has_left_is_forgotten(marks):
    adopt(marks, routing(5, chain(1, 10, 2, 3), counter=2, delta=True))
    assert not marks.marks.chains


def test_state_of_replicas_is_remembered_and_what_is_informational_is_not(marks):
    changed = Chain(
        id=1, version=10, targets=[Target(id=12, node=2, state=SERVING), Target(id=11, node=1, state=OFFLINE)]
    )
    adopt(marks, routing(5, changed, counter=2, delta=True))
    assert list(marks.marks.chains) == [changed]


def test_mark_of_the_metadata_store_only_rises(marks):
    first = StoreMark(store=7, generation=1, position=100)
    assert marks.raise_meta_store(first)
    marks.save()
    assert not marks.raise_meta_store(first)
    assert not marks.raise_meta_store(StoreMark(store=7, generation=1, position=99))
    accepted = StoreMark(store=8, generation=2, position=3)
    assert marks.raise_meta_store(accepted)
    assert marks.marks.meta_store == accepted
    adopt(marks, routing(6, chain(1, 9, 1, 2), manager=2))
    assert marks.marks.meta_store == accepted


def test_what_is_revoked_is_remembered_until_there_is_news_of_it(marks, tmp_path):
    revoked = Revocations(tokens=[RevokedToken(id=b"x")])
    seen = routing(5, counter=2, delta=True)
    seen.revocations.CopyFrom(revoked)
    assert marks.raise_to(seen)
    marks.save()
    assert not marks.raise_to(seen)
    adopt(marks, routing(5, chain(1, 10, 1, 2), counter=3, delta=True))
    adopt(marks, routing(6, chain(1, 10, 1, 2), chain(2, 4, 2, 3), manager=2))
    assert MarkFile(tmp_path, node=1).marks.revocations == revoked


@pytest.mark.parametrize("content", [b"\xff\xff\xff", Marks(format=FORMAT + 1).SerializeToString()])
def test_marks_that_cannot_be_read_are_named(tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(ConfigError, match=NAME):
        MarkFile(tmp_path, node=1)
