"""Which replica is to lead, and when that is refused."""

import pytest

from luciola.cli.metadata_status import LogState, ReplicaState
from luciola.cli.replica_control import LAG_MAX, check_able, check_absent, find_replica
from luciola.errors import Busy, NotFound, Unavailable


def _replica(name: str, lag: int | None = 0) -> ReplicaState:
    return {
        "id": name,
        "address": f"host:{name}",
        "leads": False,
        "position": None if lag is None else 5000 - lag,
        "lag": lag,
        "checkpoint": 0,
    }


def _log(name: str, *replicas: ReplicaState) -> LogState:
    return {"log": name, "first": 1, "last": 5000, "epoch": 3, "owner": "", "replicas": list(replicas)}


def test_a_replica_is_found_with_its_log() -> None:
    logs = [_log("mgmtd", _replica("1"), _replica("2")), _log("meta", _replica("100"), _replica("101"))]
    log, replica = find_replica(logs, "101")
    assert (log["log"], replica["address"]) == ("meta", "host:101")
    with pytest.raises(NotFound, match="these do: mgmtd 1, mgmtd 2, meta 100, meta 101"):
        find_replica(logs, "102")
    with pytest.raises(NotFound, match="these do: none"):
        find_replica([], "1")


def test_a_replica_that_cannot_lead_is_refused() -> None:
    check_able(_replica("100"))
    check_able(_replica("100", LAG_MAX))
    with pytest.raises(Unavailable, match=f"{LAG_MAX + 1} records behind"):
        check_able(_replica("100", LAG_MAX + 1))
    with pytest.raises(Unavailable, match="does not answer at host:100"):
        check_able(_replica("100", None))


def test_a_replica_that_runs_is_not_forgotten() -> None:
    check_absent(_replica("100", None))
    with pytest.raises(Busy, match="100 runs, and answers at host:100: stop it first"):
        check_absent(_replica("100"))
