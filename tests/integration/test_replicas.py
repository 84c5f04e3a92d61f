"""Replicas as processes, over a real etcd: the primary is killed again and again."""

from contextlib import ExitStack

import pytest

from replica_processes import ReplicaProcess, count, settled

TAKEOVERS = 4


@pytest.mark.timeout(1800)
def test_killed_primaries_lose_nothing_and_stores_stay_equal(etcd_members, tmp_path):
    answers: dict[str, int] = {}
    with ExitStack() as stack:
        replicas = []
        for name in ("first", "second", "third"):
            replicas.append(ReplicaProcess(tmp_path, name, etcd_members.endpoints))
            stack.callback(replicas[-1].end)
        for turn in range(TAKEOVERS):
            for number in range(5):
                answers[f"{turn}/{number}"], primary = count(replicas, f"{turn}/{number}")
            primary.kill()
            value, other = count([replica for replica in replicas if replica is not primary], f"{turn}/4")
            assert value == answers[f"{turn}/4"], "a request that is sent again has its first answer"
            assert other is not primary
            primary.start()
        assert sorted(answers.values()) == list(range(1, 5 * TAKEOVERS + 1))
        assert {request: count(replicas, request)[0] for request in answers} == answers
        assert len(settled(replicas)) == 1
