"""Sizes of records, against a list that forgets nothing."""

import random

import pytest

from luciola.kv import record_sizes
from luciola.kv.log.ordered_log import RECORD_BYTES_MAX
from luciola.kv.record_sizes import RecordSizes


def test_bytes_between_two_records_are_those_counted_and_the_largest_for_others():
    dice = random.Random(1)
    begin, counted = 50, [dice.randint(0, 1000) for _ in range(100)]
    sizes = RecordSizes(begin)
    for size_bytes in counted:
        sizes.add(size_bytes)
    known = {begin + 1 + place: size_bytes for place, size_bytes in enumerate(counted)}
    for _ in range(1000):
        after, upto = sorted(dice.sample(range(200), 2))
        expected = sum(known.get(index, RECORD_BYTES_MAX) for index in range(after + 1, upto + 1))
        assert sizes.at_most(after, upto) == expected
        assert sizes.at_least(after, upto) == sum(known.get(index, 0) for index in range(after + 1, upto + 1))
        assert sizes.at_most(upto, after) == sizes.at_least(upto, after) == 0


def test_only_the_last_records_are_kept(monkeypatch):
    monkeypatch.setattr(record_sizes, "COUNTED_MAX", 10)
    sizes = RecordSizes(0)
    for _ in range(1000):
        sizes.add(1)
    assert sizes.at_least(0, 2000) == sizes.at_most(990, 1000) == 10
    assert sizes.at_most(989, 1000) == 10 + RECORD_BYTES_MAX
    assert sizes.at_most(0, 1001) == 10 + 991 * RECORD_BYTES_MAX


def test_size_that_no_record_has_is_refused():
    with pytest.raises(AssertionError):
        RecordSizes(0).add(RECORD_BYTES_MAX + 1)
