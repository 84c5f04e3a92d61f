"""The switch of a migration's stores, killed after each of its steps."""

import json
import shutil
from itertools import islice

import pytest

from luciola.cli.datadir import DataDir, Shape
from luciola.cli.metadata_switch import ASIDE, begin, clear, finish, staged, steps
from luciola.errors import InvalidArgument, NotFound
from luciola.wire import Cluster

CLUSTER = Cluster("c1", "127.0.0.1:1", "127.0.0.1:2", "/secret")
OLD = Shape(CLUSTER, 1, 1, has_stores=True)
NEW = Shape(CLUSTER, 1, 1, has_stores=True, metas=2)
NAMES = ("mgmtd", "meta", "meta-checkpoints")  # of the last one there is no old one


@pytest.fixture
def data(tmp_path):
    """A data directory with old stores, and new ones beside them."""
    data = DataDir(tmp_path)
    data.write_shape(OLD)
    for name in NAMES[:2]:
        put(tmp_path / name, "old")
    for name in NAMES:
        put(staged(data, name), "new")
    return data


def put(store, content):
    store.mkdir()
    (store / "CURRENT").write_text(content)


def contents(data):
    return {path.parent.name: path.read_text() for path in data.root.glob("*/CURRENT")}


def test_a_switch_is_completed_after_whatever_step_it_was_killed(data):
    suffix = begin(data, NEW, old=NAMES, new=NAMES)
    wanted = dict.fromkeys(NAMES, "new") | {f"{name}{suffix}": "old" for name in NAMES[:2]}
    killed = 0
    while list(islice(steps(data), 1)):  # and then killed
        killed += 1
        assert (data.read_shape() == NEW) <= (contents(data) == wanted), "W2"
    assert killed == 2 + 3 + 3
    assert contents(data) == wanted
    assert data.read_shape() == NEW
    assert not finish(data)


def test_a_switch_that_was_not_begun_has_changed_nothing(data):
    assert not finish(data)
    clear(data, NAMES)
    assert contents(data) == dict.fromkeys(NAMES[:2], "old")
    assert data.read_shape() == OLD


def test_a_new_store_stays_in_its_place_when_the_old_one_was_removed(data):
    """Killed before its last step: a person sees new stores and *.aside-*, and removes these before the next `up`."""
    begin(data, NEW, old=NAMES, new=NAMES)
    list(islice(steps(data), 2 + 3 + 2))
    for path in data.root.glob(f"*{ASIDE}*"):
        shutil.rmtree(path)
    assert finish(data)
    assert contents(data) == dict.fromkeys(NAMES, "new")
    assert data.read_shape() == NEW


@pytest.mark.parametrize("done", [0, 2], ids=["before the first step", "after the old ones"])
def test_a_new_store_that_is_gone_is_missed_before_it_is_named(data, done):
    begin(data, NEW, old=NAMES, new=NAMES)
    list(islice(steps(data), done))
    shutil.rmtree(staged(data, "meta"))
    with pytest.raises(NotFound, match=r"interrupted, and meta\.new and .* were removed"):
        finish(data)
    assert data.read_shape() == OLD
    assert list(contents(data).values()).count("old") == 2


def test_what_is_cleared_is_only_what_a_migration_made(data):
    put(data.root / "meta.new.tmp", "half a copy")
    put(data.root / "meta.newest", "of a person")
    clear(data, NAMES)
    assert contents(data) == dict.fromkeys(NAMES[:2], "old") | {"meta.newest": "of a person"}


def test_a_second_switch_keeps_what_the_first_one_kept(data):
    begin(data, NEW, old=NAMES, new=NAMES)
    finish(data)
    put(staged(data, "meta"), "newest")
    begin(data, OLD, old=NAMES, new=["meta"])
    assert finish(data)
    assert contents(data)["meta"] == "newest"
    kept = sorted(content for name, content in contents(data).items() if ASIDE in name)
    assert kept == ["new", "new", "new", "old", "old"]


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"format": 3}), json.dumps({"format": 2})])
def test_a_damaged_record_is_refused(data, text):
    (data.root / "migration.json").write_text(text)
    with pytest.raises(InvalidArgument, match="damaged, or written by another release"):
        finish(data)
    assert contents(data)["meta"] == "old"
