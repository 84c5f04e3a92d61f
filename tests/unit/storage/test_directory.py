import json
import os
import stat

import pytest

from luciola.errors import Busy, ConfigError
from luciola.states import Data
from luciola.storage.directory import NEW, Directory


def opened(path, **named):
    return Directory(path, **({"node": 1, "cluster_id": "test"} | named))


def test_directory_is_for_its_owner_alone(tmp_path):
    os.umask(old := os.umask(0))
    directory = opened(tmp_path / "a" / "b")
    os.umask(old)
    directory.set_scrubbed_at(1.0)
    for path in (directory.path, directory.chunks):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for name in ("node.json", "scrub.json"):
        assert stat.S_IMODE((directory.path / name).stat().st_mode) == 0o600
    directory.close()


def test_second_process_is_refused_until_the_first_has_closed(tmp_path):
    first = opened(tmp_path)
    with pytest.raises(Busy, match="another storage process"):
        opened(tmp_path)
    first.close()
    opened(tmp_path).close()


@pytest.mark.parametrize("other", [{"node": 2}, {"cluster_id": "another"}])
def test_directory_of_another_node_or_cluster_is_refused(tmp_path, other):
    opened(tmp_path).close()
    with pytest.raises(ConfigError, match="belongs to"):
        opened(tmp_path, **other)
    opened(tmp_path).close()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"node": "x"}'])
def test_damaged_record_is_named(tmp_path, text):
    opened(tmp_path).close()
    (tmp_path / "node.json").write_text(text)
    with pytest.raises(ConfigError, match=r"node\.json"):
        opened(tmp_path)


def test_replaced_disk_has_lost_what_routing_shows(tmp_path):
    directory = opened(tmp_path)
    directory.join([5, 6])
    assert directory.data == {5: Data.LOST, 6: Data.LOST}
    directory.restore(5)
    directory.close()
    again = opened(tmp_path)
    assert again.data == {6: Data.LOST}
    again.join([7])
    assert again.data == {6: Data.LOST}, "only a new directory has lost anything"
    again.close()


def test_directory_that_joined_without_replicas_has_lost_nothing(tmp_path):
    directory = opened(tmp_path)
    directory.join([])
    directory.close()
    again = opened(tmp_path)
    again.join([5])
    assert not again.data
    again.close()


def test_crash_before_the_first_routing_keeps_the_question_open(tmp_path):
    opened(tmp_path).close()
    again = opened(tmp_path)
    again.join([5])
    assert again.data == {5: Data.LOST}
    again.close()


def test_restart_of_the_machine_without_a_clean_stop_leaves_replicas_partial(tmp_path):
    directory = opened(tmp_path, boot="first")
    directory.join([])
    directory.join([5, 6])
    directory.close()
    again = opened(tmp_path, boot="first")
    assert not again.data, "a process that was killed loses nothing"
    again.close()
    opened(tmp_path, boot="second").close()  # killed before it has seen routing
    again = opened(tmp_path, boot="second")
    again.join([])
    assert not again.data
    again.join([5, 6])
    assert again.data == {5: Data.PARTIAL, 6: Data.PARTIAL}
    again.restore(5)
    again.close()
    again = opened(tmp_path, boot="second")
    again.join([5, 6])
    assert again.data == {6: Data.PARTIAL}, "until it is up to date"
    again.set_clean()
    again.close()
    again = opened(tmp_path, boot="third")
    again.join([5, 6])
    assert again.data == {6: Data.PARTIAL}, "a clean stop leaves nothing unsynced"
    again.close()
    again = opened(tmp_path, boot="fourth")
    again.join([5, 6])
    assert again.data == {5: Data.PARTIAL, 6: Data.PARTIAL}, (
        "the mark of a clean stop is gone with the next start"
    )
    again.close()


def test_replicas_on_a_disk_that_failed_are_partial_after_the_next_start(tmp_path):
    directory = opened(tmp_path)
    directory.join([])
    directory.join([5])
    directory.set_suspect()
    directory.close()
    again = opened(tmp_path)
    again.join([5])
    assert again.data == {5: Data.PARTIAL}
    again.close()


def test_time_of_the_last_scrub_is_kept(tmp_path):
    directory = opened(tmp_path)
    assert directory.scrubbed_at() == 0
    directory.set_scrubbed_at(1234.5)
    assert directory.scrubbed_at() == 1234.5
    (tmp_path / "scrub.json").write_text("{")
    assert directory.scrubbed_at() == 0
    directory.close()


def test_socket_is_left_out_where_its_path_would_be_too_long(tmp_path):
    short = opened(tmp_path)
    assert short.socket == tmp_path / "data.sock"
    long = opened(tmp_path / ("x" * 100))
    assert long.socket is None
    short.close()
    long.close()


def test_record_is_replaced_in_one_step(tmp_path):
    directory = opened(tmp_path)
    (tmp_path / "node.json.new").write_text("left by a crash")
    directory.join([1])
    assert json.loads((tmp_path / "node.json").read_text())["lost"] == [1]
    assert not (tmp_path / "node.json.new").exists()
    directory.probe()
    directory.close()


def test_directory_knows_every_incarnation_that_mgmtd_may_have_stored(tmp_path):
    directory = opened(tmp_path)
    directory.begin(7)
    assert directory.incarnations == (NEW, 7)
    directory.close()
    directory = opened(tmp_path)  # killed: whether mgmtd has received 7 is not known
    directory.begin(8)
    assert directory.incarnations == (NEW, 7, 8)
    directory.acknowledge(8)
    directory.close()
    for begun in (9, 10):
        directory = opened(tmp_path)
        directory.begin(begun)
        directory.close()
    directory = opened(tmp_path)
    assert directory.incarnations == (8, 9, 10)
    directory.close()
