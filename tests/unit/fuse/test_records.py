"""Records of mounts."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from luciola.errors import PermissionDenied
from luciola.fuse import read_records, records

HERE = {"namespace": records.pid_namespace()}


@pytest.fixture
def data(tmp_path):
    return str(tmp_path)


def test_a_mount_is_recorded_while_it_lasts(data):
    with records.recorded(Path("/mnt/a"), data) as record:
        assert record.pid == os.getpid()
        assert read_records(data) == [record]
        assert records.find_record(Path("/mnt/a"), data) == record
        assert records.find_record(Path("/mnt/b"), data) is None
    assert read_records(data) == []


def test_records_of_processes_that_are_gone_are_removed(data):
    directory = records.directory_for(data)
    ended = subprocess.Popen(["true"])
    ended.wait()
    stale = {"pid": ended.pid, "started": 1, "mountpoint": "/mnt/a", "cluster": data, **HERE}
    (directory / "old.json").write_text(json.dumps(stale))
    assert read_records(data) == []
    assert list(directory.glob("*.json")) == []


def test_a_process_that_got_the_same_id_is_not_mistaken(data):
    directory = records.directory_for(data)
    record = {"pid": os.getpid(), "started": 1, "mountpoint": "/mnt/a", "cluster": data, **HERE}
    (directory / "old.json").write_text(json.dumps(record))
    assert read_records(data) == []


def test_record_of_another_pid_namespace_says_nothing_and_stays(data):
    with records.recorded(Path("/mnt/a"), data):
        path = next(records.directory_for(data).glob("*.json"))
        path.write_text(json.dumps({**json.loads(path.read_text()), "namespace": 1}))
        assert read_records(data) == []
        assert path.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"pid": 1, "more": 2}', "null"])
def test_damaged_records_are_passed_over(data, text):
    directory = records.directory_for(data)
    (directory / "bad.json").write_text(text)
    assert read_records(data) == []


def test_a_new_mount_on_the_same_place_keeps_its_record(data):
    with records.recorded(Path("/mnt/a"), data):
        path = next(records.directory_for(data).glob("*.json"))
        other = {**json.loads(path.read_text()), "pid": os.getppid()}
        path.write_text(json.dumps(other))
    assert path.exists()


def test_records_of_other_clusters_lie_in_a_directory_of_this_user(tmp_path, monkeypatch):
    monkeypatch.setattr(records.tempfile, "gettempdir", lambda: str(tmp_path))
    directory = records.directory_for("host:1")
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.chmod(0o755)
    with pytest.raises(PermissionDenied):
        records.directory_for("host:1")
    directory.rmdir()
    directory.symlink_to(tmp_path)
    with pytest.raises(PermissionDenied):
        records.directory_for("host:1")
