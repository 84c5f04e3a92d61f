"""Revoked tokens: what is stored, published and forgotten."""

import pytest

from luciola.errors import InvalidArgument
from luciola.mgmtd import revocations
from luciola.mgmtd.records import Records
from luciola.mgmtd.revocations import FORGET_S, all_revoked, revoke
from luciola.wire.pb import mgmtd_pb2 as pb

NOW = 1_000_000
A, B = b"a" * 16, b"b" * 16


def asked(*tokens, before=()):
    return pb.Revocations(
        tokens=[pb.RevokedToken(id=token, expires_unix_s=end) for token, end in tokens],
        minted_before=[pb.MintedBefore(key_id=key, minted_unix_s=time) for key, time in before],
    )


def applied(records, request, now=NOW):
    records.apply(revoke(records, request, now_unix_s=now))
    return records


def test_revoked_token_stays_revoked_with_the_latest_end():
    records = applied(Records(), asked((A, NOW + 5), (B, NOW + 5)))
    applied(records, asked((A, NOW + 1)))
    applied(records, asked((B, 0)))
    applied(records, asked((B, NOW + 9)))
    assert records.revoked == {A: NOW + 5, B: 0}
    assert not revoke(records, asked((A, NOW + 5), (B, 1)), now_unix_s=NOW), "nothing new is not stored"


def test_token_is_forgotten_long_after_it_has_expired_and_one_without_end_never():
    records = applied(Records(), asked((A, NOW + 5), (B, 0)))
    applied(records, asked(), now=NOW + 5 + FORGET_S)
    assert records.revoked == {A: NOW + 5, B: 0}
    applied(records, asked(), now=NOW + 6 + FORGET_S)
    assert records.revoked == {B: 0}


def test_tokens_beyond_the_limit_are_refused_and_expired_ones_make_room(monkeypatch):
    monkeypatch.setattr(revocations, "REVOKED_MAX", 2)
    records = applied(Records(), asked((A, NOW + 5), (B, 0)))
    third = asked((b"c" * 16, 0))
    with pytest.raises(InvalidArgument, match="at most 2 tokens"):
        revoke(records, third, now_unix_s=NOW)
    applied(records, third, now=NOW + 6 + FORGET_S)
    assert records.revoked.keys() == {B, b"c" * 16}


def test_time_before_which_tokens_are_void_only_grows_and_is_not_in_the_future():
    records = applied(Records(), asked(before=[(0, NOW), (3, NOW - 5)]))
    applied(records, asked(before=[(0, NOW - 1)]))
    assert records.minted_before == {0: NOW, 3: NOW - 5}
    with pytest.raises(InvalidArgument, match="in the future"):
        revoke(records, asked(before=[(0, NOW + FORGET_S + 1)]), now_unix_s=NOW)
    assert all_revoked(records) == asked(before=[(0, NOW), (3, NOW - 5)])


@pytest.mark.parametrize("token", [b"", b"x" * 65])
def test_what_cannot_be_an_id_is_refused(token):
    with pytest.raises(InvalidArgument, match="not the id"):
        revoke(Records(), asked((token, 0)), now_unix_s=NOW)
