"""`luciola rdma check`: what it makes of a survey, and its real answer on this machine."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from luciola.cli import cli
from luciola.cli.rdma_findings import judge
from luciola.cli.rdma_peer import choose_pair, explain, mtu_number
from luciola.cli.rdma_survey import Device, Gid, Port, Survey, _may_lock_all, choose_gid
from luciola.errors import InvalidArgument

LINK_LOCAL = "fe80:0000:0000:0000:0000:0000:0000:0001"
GLOBAL = "2001:0db8:0000:0000:0000:0000:0000:0001"
V4 = "0000:0000:0000:0000:0000:ffff:0a00:0001"


def entries(*table: tuple[str, str]) -> tuple[Gid, ...]:
    return tuple(Gid(index, gid, kind, "eth0") for index, (gid, kind) in enumerate(table))


ROCE = Port(1, "active", "Ethernet", 0, 4096, 4096, entries((LINK_LOCAL, "RoCE v2"), (V4, "RoCE v2")))
INFINIBAND = Port(1, "active", "InfiniBand", 7, 4096, 4096, entries((LINK_LOCAL, "InfiniBand")))
LIMITS = dict.fromkeys(
    ("max_qp", "max_qp_wr", "max_sge", "max_cqe", "max_mr", "max_qp_rd_atom", "max_qp_init_rd_atom"), 1 << 10
)


def machine(port: Port = ROCE, **changes: object) -> Survey:
    device = Device("mlx5_0", "22.31.1014", LIMITS, (port,))
    return replace(Survey(kernel=("mlx5_0",), devices=(device,), memlock=None), **changes)


@pytest.mark.parametrize(
    ("table", "index"),
    [
        ([(LINK_LOCAL, "RoCE v1"), (LINK_LOCAL, "RoCE v2")], 1),
        ([(LINK_LOCAL, "RoCE v2"), (GLOBAL, "RoCE v2"), (V4, "RoCE v1"), (V4, "RoCE v2")], 3),
        ([(LINK_LOCAL, "RoCE v2"), (GLOBAL, "RoCE v2")], 1),
        ([(V4, "RoCE v2"), (V4, "RoCE v2")], 0),
    ],
)
def test_the_address_is_v4_then_global_then_link_local_of_roce_v2(
    table: list[tuple[str, str]], index: int
) -> None:
    assert choose_gid(replace(ROCE, gids=entries(*table))).index == index


def test_infiniband_takes_the_first_address() -> None:
    assert choose_gid(INFINIBAND).index == 0


@pytest.mark.parametrize(
    ("table", "wanted", "message"),
    [
        ([], None, "empty"),
        ([(V4, "RoCE v1")], None, "no GID of RoCE version 2"),
        ([(V4, "RoCE v1")], 0, "not of RoCE version 2"),
        ([(V4, "RoCE v2")], 1, "nothing at index 1"),
    ],
)
def test_an_address_that_does_not_do_is_refused(
    table: list[tuple[str, str]], wanted: int | None, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        choose_gid(replace(ROCE, gids=entries(*table)), wanted)


def test_a_machine_where_all_is_well_has_no_problem() -> None:
    for port in (ROCE, INFINIBAND):
        findings, usable = judge(machine(port))
        assert [each.level for each in findings] == ["ok", "ok"]
        assert [each.name for each in usable] == ["mlx5_0:1"]


@pytest.mark.parametrize(
    ("found", "about", "level", "remedy"),
    [
        (Survey(), "kernel", "problem", "rdma link add"),
        (machine(library_problem="libibverbs.so.1: not found"), "libibverbs", "problem", "apt install libibverbs1"),
        (machine(pyverbs_problem="no; `apt install python3-pyverbs`"), "pyverbs", "problem", "python3-pyverbs"),
        (machine(node_problem="there is no uverbs0"), "device nodes", "problem", "modprobe ib_uverbs"),
        (replace(machine(), kernel=("mlx5_0", "mlx5_1")), "mlx5_1", "problem", "ibverbs-providers"),
        (machine(replace(ROCE, state="down")), "mlx5_0:1", "problem", "ip link set eth0 up"),
        (machine(replace(INFINIBAND, state="initializing")), "mlx5_0:1", "problem", "opensm"),
        (machine(replace(ROCE, problem="Invalid argument")), "mlx5_0:1", "problem", "kernel's log"),
        (machine(replace(ROCE, gids=())), "mlx5_0:1", "problem", "ip addr add"),
        (machine(replace(ROCE, gids=entries((LINK_LOCAL, "RoCE v2")))), "mlx5_0:1", "note", "IPv4"),
        (machine(replace(ROCE, mtu=1024)), "mlx5_0:1", "note", "mtu 4200"),
        (machine(replace(INFINIBAND, mtu=2048)), "mlx5_0:1", "note", "subnet manager"),
        (machine(memlock=8 << 20), "memlock", "problem", "LimitMEMLOCK"),
        (machine(memlock=512 << 20), "memlock", "note", "--ulimit memlock"),
    ],
)  # fmt: skip
def test_each_fault_has_its_remedy(found: Survey, about: str, level: str, remedy: str) -> None:
    findings, _ = judge(found)
    faults = [each for each in findings if each.level != "ok"]
    assert [(each.about, each.level) for each in faults] == [(about, level)]
    assert remedy in faults[0].remedy


def test_no_limit_binds_who_may_lock_all() -> None:
    findings, _ = judge(machine(memlock=64 << 10, may_lock_all=True))
    assert all(each.level == "ok" for each in findings)
    assert _may_lock_all("Name:\tx\nCapEff:\t000001ffffffffff\n")
    assert not _may_lock_all("Name:\tx\nCapEff:\t0000000000000000\n")
    assert not _may_lock_all("")


def test_a_device_with_narrow_limits_is_remarked_upon() -> None:
    device = Device("old0", "1", LIMITS | {"max_qp_wr": 16, "max_qp_rd_atom": 0}, (ROCE,))
    findings, _ = judge(Survey(kernel=("old0",), devices=(device,)))
    assert [(each.level, each.about) for each in findings[:2]] == [("note", "old0"), ("problem", "old0")]
    findings, usable = judge(
        Survey(kernel=("x",), devices=(Device("x", "", {}, (), problem="Permission denied"),))
    )
    assert not usable
    assert "cannot be opened" in findings[0].what


def test_only_what_is_wanted_is_used() -> None:
    assert judge(machine(), wanted="mlx5_0")[1]
    assert judge(machine(), wanted="mlx5_0:1")[1]
    findings, usable = judge(machine(), wanted="mlx5_0:2")
    assert not usable
    assert findings[-1].remedy == "there are: mlx5_0:1"


def end(gid: str, link: str = "Ethernet") -> dict[str, object]:
    return {"gid": gid, "link": link}


@pytest.mark.parametrize(
    ("ours", "theirs", "pair"),
    [
        ([end(V4)], [end(V4.replace("0001", "0002"))], (0, 0)),
        ([end(GLOBAL), end(V4)], [end(V4), end(LINK_LOCAL)], (1, 0)),
        ([end(V4), end(V4.replace("0a00", "0a01"))], [end(V4.replace("0a00", "0a01"))], (1, 0)),
        ([end(V4)], [end(GLOBAL)], None),
        ([end(V4)], [end(V4, "InfiniBand")], None),
        ([end(LINK_LOCAL, "InfiniBand")], [end(LINK_LOCAL, "InfiniBand")], (0, 0)),
        ([end(LINK_LOCAL, "InfiniBand")], [end(GLOBAL, "InfiniBand")], None),
        ([], [], None),
    ],
)
def test_the_closest_ports_are_paired(
    ours: list[dict[str, object]], theirs: list[dict[str, object]], pair: tuple[int, int] | None
) -> None:
    assert choose_pair(ours, theirs) == pair


def test_addresses_are_written_as_people_do() -> None:
    texts = [Gid(0, gid, "RoCE v2", "eth0").text for gid in (V4, GLOBAL, LINK_LOCAL)]
    assert texts == ["10.0.0.1", "2001:db8::1", "fe80::1"]


def test_sizes_of_packets_have_numbers() -> None:
    assert [mtu_number(256 << n) for n in range(5)] == [1, 2, 3, 4, 5]
    assert mtu_number(9000) == 5


def test_failed_completions_are_explained() -> None:
    names = ("RETRY_EXC_ERR", "RNR_RETRY_EXC_ERR", "REM_ACCESS_ERR", "WR_FLUSH_ERR")
    enums = SimpleNamespace(**{f"IBV_WC_{name}": 10 + place for place, name in enumerate(names)})
    assert "4791" in explain(enums, 10)
    assert "status 99" in explain(enums, 99)


def test_the_answer_of_this_machine_is_consistent() -> None:
    done = CliRunner().invoke(cli, ["rdma", "check", "--json"])
    document = json.loads(done.stdout)
    devices = Path("/sys/class/infiniband")
    present = sorted(os.listdir(devices)) if devices.is_dir() else []
    assert document["kernel_devices"] == present
    problems = {each["about"] for each in document["findings"] if each["level"] == "problem"}
    assert done.exit_code == (0 if document["usable"] and "memlock" not in problems else 1)
    assert all(each["remedy"] for each in document["findings"] if each["level"] == "problem")
    if not present:
        assert any("no RDMA device" in each["what"] for each in document["findings"])


def test_without_pyverbs_the_package_is_named() -> None:
    """A Python that knows no Debian packages, also where this machine has some."""
    code = (
        "from pathlib import Path\n"
        "from luciola.cli import rdma_survey\n"
        "rdma_survey.DEBIAN = Path('/nonexistent')\n"
        "print(rdma_survey.survey().pyverbs_problem)"
    )
    search = os.pathsep.join(path for path in sys.path if path and not (Path(path) / "pyverbs").exists())
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "apt install python3-pyverbs" in done.stdout


def test_too_little_lockable_memory_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(**changes: object) -> tuple[int, str]:
        monkeypatch.setattr("luciola.cli.rdma.survey", lambda: machine(**changes))
        done = CliRunner().invoke(cli, ["rdma", "check"])
        return done.exit_code, done.stdout

    assert answer()[0] == 0
    status, shown = answer(memlock=1 << 20)
    assert status == 1
    assert "LimitMEMLOCK=infinity" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["--peer", "host", "--listen"],
        ["--peer", "host:port"],
        ["--peer", ":1"],
        ["--peer", "host:70000"],
        ["--gid-index", "-1"],
        ["--rounds", "0"],
    ],
)
def test_wrong_usage_is_refused(arguments: list[str]) -> None:
    assert CliRunner().invoke(cli, ["rdma", "check", *arguments]).exit_code == 2
