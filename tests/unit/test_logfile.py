"""Logs are bounded while their processes run, and lose no line."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, sys, time
from luciola import logfile
if sys.argv[2] == "thread":
    logfile.rotate_output(limit=1000, interval_s=0.001)
for number in range(200):
    os.write(2, b"%s %06d\\n" % (sys.argv[1].encode(), number))
    if sys.argv[2] == "call":
        logfile.follow(sys.argv[3], 1000)
while sys.argv[2] == "thread" and not os.path.exists(sys.argv[3] + ".1"):
    time.sleep(0.001)
os.write(2, b"end\\n")
"""


def start(log: Path, name: str, how: str) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, name, how, str(log)], stdout=output, stderr=output
        )


def test_long_log_is_kept_once_and_a_new_one_begun(tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    assert start(log, "a", "call").wait(60) == 0
    old, new = (tmp_path / "service.log.1").read_text(), log.read_text()
    lines = (old + new).splitlines()
    assert lines[-1] == "end"
    numbers = [int(line.split()[1]) for line in lines[:-1]]
    assert numbers == list(range(numbers[0], 200)), "no line is lost"
    assert len(old) < 1100
    assert len(new) < 1100


def test_processes_that_share_a_log_follow_one_another(tmp_path: Path) -> None:
    log = tmp_path / "mounts.log"
    processes = [start(log, name, "call") for name in "ab"]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mounts.log", "mounts.log.1"]
    assert "end" in log.read_text() + (tmp_path / "mounts.log.1").read_text()
    assert log.stat().st_size < 2000


def test_running_process_looks_at_its_log_by_itself(tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    assert start(log, "a", "thread").wait(60) == 0
    assert (tmp_path / "service.log.1").exists()
