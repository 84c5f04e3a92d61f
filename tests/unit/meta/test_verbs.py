"""The table of verbs: what of it a client can notice."""

import pytest

from luciola.meta.verbs import READ, RECORDED, VERBS, WRITE, Length, verb_of
from luciola.wire.methods import Meta, methods_of
from luciola.wire.pb import meta_pb2 as pb

WITHOUT_A_ROW = {"hold", "stat_fs"}  # they have no transaction
HINT = pb.LengthHint(length=5, truncate_version=0)


def test_every_method_of_the_lane_has_a_row():
    on_the_lane = {method.attribute for method in methods_of(Meta) if method.lane}
    assert {verb.method.attribute for verb in VERBS} == on_the_lane - WITHOUT_A_ROW


@pytest.mark.parametrize(
    ("method", "request_", "mode"),
    [
        (Meta.open, pb.OpenRequest(read=True), READ),
        (Meta.open, pb.OpenRequest(write=True), RECORDED),
        (Meta.open, pb.OpenRequest(read=True, truncate=True), RECORDED),
        (Meta.close, pb.CloseRequest(closes=[pb.CloseOne(inode=20, read_hold=True)]), READ),
        (Meta.close, pb.CloseRequest(closes=[pb.CloseOne(inode=20, session=7)]), WRITE),
        (Meta.close, pb.CloseRequest(closes=[pb.CloseOne(inode=20, session=7, length=HINT)]), RECORDED),
        (Meta.sync, pb.SyncRequest(inode=20, durable=True), WRITE),
        (Meta.sync, pb.SyncRequest(inode=20, mtime_ns=1), RECORDED),
    ],
)
def test_replies_are_recorded_only_where_a_request_changes_what_a_second_one_would_find(
    method, request_, mode
):
    assert verb_of(method).mode_of(request_) is mode


def test_only_an_exact_stat_waits_for_the_chains():
    stat = verb_of(Meta.stat)
    assert stat.length_of(pb.StatRequest(exact=True)) is Length.EXACT
    assert stat.length_of(pb.StatRequest()) is Length.RECENT


def test_what_a_service_answers_is_what_the_method_of_the_row_replies_with(world):
    world.create(b"f", write=False)
    for verb in VERBS:
        handler = getattr(world.service, verb.method.attribute)
        assert callable(handler), verb.method.path
    assert type(world.call("lookup", pb.LookupRequest(parent=1, name=b"f"))) is Meta.lookup.reply
    assert type(world.call("list", pb.ListRequest(inode=1))) is Meta.list.reply
