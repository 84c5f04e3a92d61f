"""A client is given new tokens, and somebody hears why not."""

import logging
import time

from luciola.client.renewal import Renewal
from luciola.wire.credentials import Limits, mint, save_token
from luciola.wire.token_source import TokenFile

SECRET = bytes(32)


class Client:
    """What `Renewal` sees of a native client."""

    def __init__(self):
        self.tokens = []
        self.is_token_refused = False

    def set_token(self, claims, key):
        self.tokens.append((claims, key))


def test_each_new_token_is_handed_over_once(tmp_path):
    path = tmp_path / "token"
    save_token(path, first := mint(SECRET))
    client = Client()
    renewal = Renewal(TokenFile(path), first, lambda: client)
    assert renewal.look()
    assert client.tokens == []
    save_token(path, second := mint(SECRET))
    assert renewal.look()
    assert renewal.look()
    assert client.tokens == [tuple(second)]


def test_a_damaged_file_replaces_nothing_and_is_said_once(tmp_path, caplog):
    path = tmp_path / "token"
    save_token(path, first := mint(SECRET))
    client = Client()
    renewal = Renewal(TokenFile(path), first, lambda: client)
    with caplog.at_level(logging.WARNING):
        path.write_text("nonsense")
        assert renewal.look()
        assert renewal.look()
        assert [str(path) in each for each in caplog.messages] == [True]
        save_token(path, second := mint(SECRET))
        assert renewal.look()
    assert client.tokens == [tuple(second)]


def test_a_token_with_other_limits_is_not_handed_over(tmp_path, caplog):
    path = tmp_path / "token"
    save_token(path, first := mint(SECRET))
    client = Client()
    renewal = Renewal(TokenFile(path), first, lambda: client)
    with caplog.at_level(logging.WARNING):
        save_token(path, mint(SECRET, limits=Limits(read_only=True)))
        assert renewal.look()
    assert client.tokens == []
    assert "opens another directory, or is read-only: connect again" in caplog.text


def test_an_end_that_comes_near_is_said_with_the_files_name(tmp_path, caplog):
    path = tmp_path / "token"
    now = time.time()
    save_token(path, first := mint(SECRET, lifetime_s=1000, now_unix_s=now - 920))
    with caplog.at_level(logging.WARNING):
        assert Renewal(TokenFile(path), first, Client).look()
    assert f"the token in {path} expires at" in caplog.text


def test_following_ends_with_the_client(tmp_path):
    save_token(tmp_path / "token", first := mint(SECRET))
    assert not Renewal(TokenFile(tmp_path / "token"), first, lambda: None).look()
