"""What is said of the members of etcd."""

from luciola.cli.metadata_status import (
    LAG_MAX,
    LogState,
    MemberState,
    describe_members,
    find_logs,
    find_members,
)


def _members(*states: str, leader: int | None = 0) -> list[MemberState]:
    return [
        {
            "address": f"host-{index}:2379",
            "state": state,
            "leads": index == leader,
            "version": "3.4.23",
            "size_bytes": 8 << 30,
            "used_bytes": 1 << 20,
        }
        for index, state in enumerate(states)
    ]


def test_nothing_is_said_of_members_that_are_well() -> None:
    assert describe_members(_members("running", "running", "running")) == []
    assert describe_members([]) == []


def test_a_member_that_does_not_answer_is_named() -> None:
    assert describe_members(_members("running", "unreachable", "running")) == [
        "etcd at host-1:2379 does not answer"
    ]


def test_a_lost_majority_is_said() -> None:
    lines = describe_members(_members("running", "unreachable", "unreachable", leader=None))
    assert "2 of 3 members of etcd do not answer, a majority is needed" in lines[-1]
    assert "majority" in describe_members(_members("unreachable", leader=None))[-1]
    two_of_four = describe_members(_members("unreachable", "unreachable", "running", "running", leader=2))
    assert "majority" in two_of_four[-1]
    two_of_five = describe_members(_members(*["unreachable"] * 2, *["running"] * 3, leader=3))
    assert len(two_of_five) == 2


def test_members_without_a_leader_are_noticed() -> None:
    lines = describe_members(_members("running", "running", "running", leader=None))
    assert lines == ["etcd has no leader: no metadata can be read or changed until it has one"]


def test_a_full_etcd_is_said_with_where_to_read() -> None:
    (line,) = describe_members(_members("running", "full", "running"))
    assert "host-1:2379 is full (8.0 GiB)" in line
    assert "A full etcd" in line


def test_each_trouble_of_etcd_has_its_code() -> None:
    assert [each.code for each in find_members(_members("unreachable", "unreachable", "running"))] == [
        "ETCD_MEMBER_DOWN",
        "ETCD_MEMBER_DOWN",
        "ETCD_NO_QUORUM",
    ]
    assert [each.code for each in find_members(_members("full", "corrupt", leader=None))] == [
        "ETCD_NO_LEADER",
        "ETCD_FULL",
        "ETCD_CORRUPT",
    ]


def _log(name: str, *lags: int | None) -> LogState:
    return {
        "log": name,
        "first": 1,
        "last": 10**6,
        "epoch": 2,
        "owner": "",
        "replicas": [
            {
                "id": str(index),
                "address": "",
                "leads": index == 0,
                "position": None if lag is None else 10**6 - lag,
                "lag": lag,
                "checkpoint": 0,
            }
            for index, lag in enumerate(lags)
        ],
    }


def test_standby_that_is_missing_or_behind_is_found() -> None:
    assert find_logs([_log("meta", 0, 5), _log("mgmtd", 0)]) == []
    assert [each.code for each in find_logs([_log("meta", 0, None), _log("mgmtd", 0, None)])] == [
        "META_NO_STANDBY",
        "MGMTD_NO_STANDBY",
    ]
    assert [each.code for each in find_logs([_log("meta", 0, LAG_MAX + 1)])] == ["META_BEHIND"]
