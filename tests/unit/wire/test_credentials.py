import os
import stat

import pytest

from luciola.errors import (
    AlreadyExists,
    ConfigError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)
from luciola.wire import credentials
from luciola.wire.credentials import ADMIN, CLIENT, SERVICE, TRUSTED, Identity, Minter, Token, mint, verify
from luciola.wire.pb.common_pb2 import Caller, Claims

SECRET = bytes(range(32))


def test_secret_is_created_for_its_owner_alone_and_read_back(tmp_path):
    path = tmp_path / "secret"
    os.umask(old := os.umask(0))
    try:
        os.umask(0)
        secret = credentials.create_secret(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert credentials.load_secret(path) == secret
    assert len(set(secret)) > 8


def test_secret_is_never_overwritten(tmp_path):
    path = tmp_path / "secret"
    secret = credentials.create_secret(path)
    with pytest.raises(AlreadyExists):
        credentials.create_secret(path)
    assert credentials.load_secret(path) == secret


def test_dangling_link_is_not_followed_when_the_secret_is_created(tmp_path):
    path = tmp_path / "secret"
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AlreadyExists):
        credentials.create_secret(path)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_secret_that_others_may_touch_is_refused(tmp_path, mode):
    path = tmp_path / "secret"
    credentials.create_secret(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        credentials.load_secret(path)


@pytest.mark.parametrize("text", ["", "00" * 31, "00" * 33, "zz" * 32, "é" * 64])
def test_secret_of_another_form_is_refused(tmp_path, text):
    path = tmp_path / "secret"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="64 hex digits"):
        credentials.load_secret(path)


def test_missing_secret_names_its_path(tmp_path):
    with pytest.raises(NotFound, match="secret") as caught:
        credentials.load_secret(tmp_path / "secret")
    assert caught.value.filename == str(tmp_path / "secret")


def test_directory_is_not_a_secret(tmp_path):
    tmp_path.chmod(0o700)
    with pytest.raises(ConfigError):
        credentials.load_secret(tmp_path)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_secret_of_another_user_is_refused(tmp_path):
    path = tmp_path / "secret"
    credentials.create_secret(path)
    os.chown(path, 65534, 65534)
    with pytest.raises(ConfigError, match="belongs to uid 65534"):
        credentials.load_secret(path)


def test_token_survives_its_text_form():
    token = mint(SECRET, role=ADMIN, uid=7, gid=8, groups=(9, 10))
    assert Token.parse(token.encode()) == token
    assert verify(SECRET, token) == Identity(ADMIN, 7, 8, (9, 10))


def test_token_without_a_user_is_for_this_process():
    identity = verify(SECRET, mint(SECRET))
    assert (identity.role, identity.uid, identity.gid) == (CLIENT, os.geteuid(), os.getegid())


def test_two_tokens_of_one_user_differ():
    assert mint(SECRET, uid=1) != mint(SECRET, uid=1)


@pytest.mark.parametrize(
    "text", ["", ".", "a", "a.b.c", "====.====", "AA.!!", "é.é", "A" * 5000 + ".AA", "AAAAA.AAAAA", "abc.def"]
)
def test_text_that_is_no_token_is_refused(text):
    with pytest.raises(Unauthenticated):
        verify(SECRET, Token.parse(text))


def test_token_of_another_secret_is_refused():
    with pytest.raises(Unauthenticated):
        verify(SECRET, mint(bytes(32)))


def test_every_tampered_bit_of_the_claims_is_noticed():
    token = mint(SECRET, role=CLIENT, uid=1000)
    for bit in range(8 * len(token.claims)):
        claims = bytearray(token.claims)
        claims[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Unauthenticated):
            verify(SECRET, Token(bytes(claims), token.key))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_token_file_that_others_may_touch_is_refused(tmp_path, mode):
    path = tmp_path / "token"
    credentials.save_token(path, mint(SECRET))
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"others may read or write the token; run `chmod 600 {path}`"):
        credentials.load_token(path)


def test_token_file_of_another_user_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "token"
    credentials.save_token(path, mint(SECRET))
    owner = path.stat().st_uid
    stranger = owner + 1 if owner else 1000
    if owner:
        monkeypatch.setattr(os, "geteuid", lambda: stranger)
        expected = f"belongs to uid {owner}.*chown {stranger}"
    else:
        os.chown(path, stranger, -1)
        expected = f"belongs to uid {stranger}.*chown 0"
    with pytest.raises(ConfigError, match=expected):
        credentials.load_token(path)


@pytest.mark.parametrize("text", ["", "nonsense", "a.b", "é.é"])
def test_token_file_of_another_form_is_refused_and_not_repeated(tmp_path, text):
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(Unauthenticated, match="not a token") as caught:
        credentials.load_token(path)
    assert caught.value.filename == str(path)


def test_token_expires_at_its_second():
    token = mint(SECRET, lifetime_s=60)
    end = Claims.FromString(token.claims).expires_unix_s
    assert verify(SECRET, token, now_unix_s=end - 1)
    with pytest.raises(Unauthenticated, match="expired"):
        verify(SECRET, token, now_unix_s=end)


def test_expired_token_says_which_and_when():
    token = mint(SECRET, lifetime_s=60, now_unix_s=1_000_000)
    assert credentials.require_current(mint(SECRET)).id != token.id
    expected = f"the token {token.id} expired at 1970-01-12 13:47:40 UTC; make another .*: '/job.token'"
    with pytest.raises(Unauthenticated, match=expected):
        credentials.require_current(token, path="/job.token")


def test_services_tokens_are_renewed_long_before_they_expire():
    now = [1000.0]
    minter = Minter(SECRET, role=SERVICE, now_unix_s=lambda: now[0])
    first = minter()
    now[0] += credentials.RENEW_S - 1
    assert minter() is first
    now[0] += 1
    second = minter()
    assert second.id != first.id
    assert verify(SECRET, first, now_unix_s=now[0]).role == SERVICE, "calls on their way are served"
    end = 1000 + credentials.SERVICE_TOKEN_S
    assert verify(SECRET, first, now_unix_s=end - 1)
    with pytest.raises(Unauthenticated, match="expired"):
        verify(SECRET, first, now_unix_s=end)
    now[0] -= 500  # the clock was set back: a token from the future would live for longer
    third = minter()
    assert third.described().expires_unix_s == now[0] + credentials.SERVICE_TOKEN_S
    assert "key" not in repr(minter)


def test_groups_that_do_not_fit_a_token_are_refused():
    assert mint(SECRET, groups=[1 << 31] * 150)
    with pytest.raises(InvalidArgument, match="too many groups"):
        mint(SECRET, groups=[1 << 31] * 250)


def test_client_speaks_for_its_own_user_only():
    identity = Identity(CLIENT, 1000, 100, (20,))
    assert identity.user(Caller(uid=1000, gid=0, groups=[0])) == (1000, 100, (20,))
    with pytest.raises(PermissionDenied):
        identity.user(Caller(uid=1001))
    with pytest.raises(PermissionDenied):
        identity.user(Caller(uid=0))


def test_root_without_trust_is_an_unprivileged_user():
    assert Identity(CLIENT, 0, 0, (0,)).user(Caller(uid=0)) == (65534, 65534, ())


@pytest.mark.parametrize("role", [TRUSTED, ADMIN, SERVICE])
def test_trusted_roles_speak_for_anybody(role):
    assert Identity(role, 1, 1, ()).user(Caller(uid=0, gid=5, groups=[6])) == (0, 5, (6,))


def test_each_role_includes_those_before_it():
    roles = (CLIENT, TRUSTED, ADMIN, SERVICE)
    for have in roles:
        for need in roles:
            assert Identity(have, 0, 0, ()).may(need) == (roles.index(have) >= roles.index(need))
