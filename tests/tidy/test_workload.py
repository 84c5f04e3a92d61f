"""What benchmarks/workload.py reports of its work."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def workload(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("workload")


def test_figure_has_the_processor_time_of_an_operation_by_process(
    workload: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = importlib.import_module("processes").Usage
    used = iter([{"mount": usage(1_000, 0)}, {"mount": usage(401_000, 0)}])
    monkeypatch.setattr(workload, "usage_of_services", lambda root, *, starter: next(used))
    program = iter([0, 50_000])
    monkeypatch.setattr(workload, "program_ns", lambda: next(program))
    figures = workload.Figures(tmp_path)
    figures.add("work", lambda: workload.Outcome(value=10.0, operations=100, p999_ms=1.5))
    assert figures.found == {"work": workload.Figure(10.0, {"program": 0.5, "mount": 4.0}, 1.5)}


def test_open_again_is_measured_from_the_third_open_on(
    workload: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def parallel(action, work: Path, processes: int, count: int):
        done.append(f"{action.__name__} x{processes}")
        return workload.Outcome(1.0, count)

    monkeypatch.setattr(workload, "parallel", parallel)
    monkeypatch.setattr(workload, "forget_names", lambda: done.append("forget"))
    figures = workload.Figures(tmp_path)
    workload.work_on_names(figures, tmp_path, 8)
    at = done.index("open_again x4")
    assert done[at - 2 : at + 1] == ["open_and_close x4", "open_and_close x4", "open_again x4"]
    assert "open again x1 op/s" in figures.found


def test_small_random_blocks_have_a_percentile_and_others_have_none(
    workload: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[dict[str, object]] = []

    def fio(**options: object):
        jobs.append(options)
        return workload.Job(iops=100.0, bytes_per_s=2.0**20, operations=50, p999_ms=0.25)

    monkeypatch.setattr(workload, "fio", fio)
    figures = workload.Figures(tmp_path)
    workload.access_randomly(figures, tmp_path / "data", 1, 1)
    small = {name: figure.p999_ms for name, figure in figures.found.items() if " 4K " in name}
    assert set(small.values()) == {0.25}
    assert {figure.p999_ms for name, figure in figures.found.items() if name not in small} == {None}
    assert {(job["rw"], job["direct"]) for job in jobs if job["bs"] == "4K"} == {
        ("randread", 1),
        ("randwrite", 1),
        ("randwrite", 0),
    }
