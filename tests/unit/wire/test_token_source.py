"""Tokens that are read again from a file, or made again with the secret."""

import os
import time

import pytest

from luciola.errors import ConfigError, NotFound, Unauthenticated
from luciola.wire.credentials import CLIENT, SERVICE_TOKEN_S, TRUSTED, create_secret, mint, save_token, verify
from luciola.wire.token_source import MINT_S, MINTED_S, Given, Kept, SecretFile, TokenFile

SECRET = bytes(range(32))


def test_token_file_is_read_again_when_it_changes(tmp_path):
    path = tmp_path / "job.token"
    first, second = mint(SECRET), mint(SECRET)
    save_token(path, first)
    source = TokenFile(path)
    assert source() is source()
    assert source() == first
    save_token(path, second)
    assert source() == second
    text = mint(SECRET).encode()
    path.write_text(text)  # in place, of the same length
    assert source().encode() == text


def test_token_file_that_is_of_no_use_is_said_with_its_name(tmp_path):
    path = tmp_path / "job.token"
    source = TokenFile(path)
    assert source.name == f"the token in {path}"
    with pytest.raises(NotFound, match=r"job\.token"):
        source()
    save_token(path, mint(SECRET, lifetime_s=-1))
    with pytest.raises(Unauthenticated, match=r"expired at .*job\.token"):
        source()
    save_token(path, good := mint(SECRET))
    assert source() == good
    path.write_text("half a tok")
    with pytest.raises(Unauthenticated, match=r"not a token.*job\.token"):
        source()
    save_token(path, good)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        source()
    path.chmod(0o600)
    assert source() == good


def test_token_made_with_the_secret_is_made_again_long_before_it_expires(tmp_path):
    path = tmp_path / "secret"
    secret = create_secret(path)
    now = [1_000_000.0]
    source = SecretFile(path, role=TRUSTED, now_unix_s=lambda: now[0])
    first = source()
    assert verify(secret, first, now_unix_s=now[0] + MINTED_S - 1).role == TRUSTED
    now[0] += MINT_S - 1
    assert source() is first
    now[0] += 1
    assert source() != first


def test_refused_token_made_with_the_secret_is_replaced_but_not_again_and_again(tmp_path):
    path = tmp_path / "secret"
    create_secret(path)
    now = [1_000_000.0]
    source = SecretFile(path, role=CLIENT, now_unix_s=lambda: now[0])
    first = source()
    assert source(refused=True) is first
    now[0] += 11
    second = source(refused=True)
    assert second.id != first.id
    assert source(refused=True) is second
    os.unlink(path)
    secret = create_secret(path)
    assert verify(secret, source(), now_unix_s=now[0]).role == CLIENT, "another secret is used at once"
    now[0] -= 5000  # a token from the future would be void
    assert source().described().minted_unix_s == now[0]


@pytest.mark.parametrize("damage", ["away", "half", "readable"])
def test_kept_token_is_shown_while_its_file_is_of_no_use(tmp_path, damage):
    path = tmp_path / "job.token"
    save_token(path, first := mint(SECRET))
    kept = Kept(TokenFile(path))
    if damage == "away":
        path.unlink()
    elif damage == "half":
        path.write_text("half a tok")
    else:
        path.chmod(0o644)
    assert kept() == first
    assert not kept.is_replaced()
    save_token(path, second := mint(SECRET))
    assert kept() == second


def test_kept_token_that_has_expired_says_what_its_file_lacks(tmp_path, monkeypatch):
    path = tmp_path / "job.token"
    save_token(path, mint(SECRET, lifetime_s=60))
    kept = Kept(TokenFile(path))
    path.unlink()
    now_unix_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_unix_s + 61)
    with pytest.raises(NotFound, match=r"job\.token"):
        kept()


def test_refused_token_for_calls_is_made_again_at_once_and_soon_expires(tmp_path):
    path = tmp_path / "secret"
    create_secret(path)
    now = [1_000_000.0]
    kept = Kept(SecretFile(path, role=CLIENT, now_unix_s=lambda: now[0]).short_lived())
    first = kept()
    assert first.described().expires_unix_s == now[0] + SERVICE_TOKEN_S
    assert kept() is first
    assert kept.is_replaced()
    assert kept().id != first.id


def test_given_token_is_refused_when_it_has_expired():
    assert Given(token := mint(SECRET))() == token
    with pytest.raises(Unauthenticated, match="expired at"):
        Given(mint(SECRET, lifetime_s=-1))()
