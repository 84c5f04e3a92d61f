"""benchmarks/run.py keeps and shows what benchmarks/workload.py measured."""

import argparse
import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("run")


def options(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**({"systems": ["luciola", "local"], "before": None, "variant": []} | given))


def figures(run: ModuleType) -> dict[str, dict[str, list[object]]]:
    """Three rounds of two systems."""
    found: dict[str, dict[str, list[object]]] = {"luciola": {}, "moosefs": {}}
    for number in (1, 2, 6):
        measured = {
            "luciola": {
                "randread 4K x1 direct IOPS": run.Figure(
                    100 * number, {"mount": 10.0 * number}, 0.5 * number
                ),
                "create x1 op/s": run.Figure(10, {"mount": 0.2, "meta": 200.0 + number}, None),
            },
            "moosefs": {
                "randread 4K x1 direct IOPS": run.Figure(50, {"mfsmount": 20.0}, 2.0),
                "create x1 op/s": run.Figure(20, {"mfsmaster": 100.0}, None),
            },
        }
        run.add_round(found, measured, stolen=0.01)
    return found


def test_round_in_which_others_took_the_processors_is_dropped(run: ModuleType) -> None:
    found = figures(run)
    run.add_round(found, {"luciola": {"create x1 op/s": run.Figure(10**6, {}, None)}}, stolen=0.04)
    assert run.values(found["luciola"]["create x1 op/s"]) == [10, 10, 10]


def test_ratios_are_those_within_a_round(run: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    run.print_ratios(figures(run))
    lines = capsys.readouterr().out.splitlines()
    assert "| times moosefs | luciola |" in lines
    assert "| randread 4K x1 direct IOPS | 4.00 (2.00 to 12.00) |" in lines
    assert "| create x1 op/s | 0.50 (0.50 to 0.50) |" in lines


def test_latencies_are_shown_of_figures_that_have_one(
    run: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    run.print_latencies(figures(run))
    assert capsys.readouterr().out.split("\n") == [
        "",
        "| p99.9, ms | luciola | moosefs |",
        "|---|---:|---:|",
        "| randread 4K x1 direct IOPS | 1.00 (0.50 to 3.00) | 2.00 (2.00 to 2.00) |",
        "",
    ]


def test_processor_time_is_shown_by_process(run: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    run.print_processor_time(figures(run))
    lines = capsys.readouterr().out.splitlines()
    assert "| luciola: processor time of an operation, µs | mount | meta |" in lines
    assert "| randread 4K x1 direct IOPS | 20.0 |  |" in lines
    assert "| create x1 op/s | 0.2 | 202.0 |" in lines
    assert "| moosefs: processor time of an operation, µs | mfsmount | mfsmaster |" in lines


def test_every_system_says_who_acknowledges(run: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    run.print_acknowledgements(run.SYSTEMS)
    lines = capsys.readouterr().out.splitlines()
    assert "| luciola 2 copies | memory of 2 replicas | memory of the client | disk |" in lines
    assert all(any(line.startswith(f"| {name} |") for line in lines) for name in run.SYSTEMS)


def test_variant_is_a_further_system_with_its_own_options(run: ModuleType) -> None:
    systems = run.chosen(options(variant=[["three nodes", "--storage-nodes 3 --config 'a b'"]]))
    assert list(systems) == ["luciola", "local", "three nodes"]
    assert systems["three nodes"].start.keywords["options"] == ["--storage-nodes", "3", "--config", "a b"]
    assert systems["three nodes"].direct == systems["luciola"].direct


def test_variant_may_not_take_the_name_of_a_system(run: ModuleType) -> None:
    for name in ("moosefs", "luciola"):
        with pytest.raises(SystemExit, match="there is a system of that name"):
            run.chosen(options(variant=[[name, ""]]))


def test_version_before_is_measured_beside_each_of_ours(run: ModuleType) -> None:
    systems = run.chosen(options(systems=["luciola", "luciola 2 copies", "local"], before="/other/python"))
    assert list(systems) == ["luciola", "luciola 2 copies", "local", "before", "before 2 copies"]
    start = systems["before 2 copies"].start.keywords
    assert start == {"storage_nodes": 2, "replicas": 2, "python": "/other/python"}


def test_record_holds_every_round(run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "HERE", tmp_path)
    run.keep(figures(run), {name: run.SYSTEMS[name] for name in ("luciola", "moosefs")})
    (path,) = (tmp_path / "results").iterdir()
    record = json.loads(path.read_text())
    read = "randread 4K x1 direct IOPS"
    assert record["figures"]["luciola"][read] == [100, 200, 600]
    assert record["p999_ms"]["luciola"] == {read: [0.5, 1.0, 3.0], "create x1 op/s": [None, None, None]}
    assert record["processor_us"]["moosefs"]["create x1 op/s"] == {"mfsmaster": 100.0}
    assert record["acknowledged_by"]["moosefs"]["direct"] == "memory of the client"
