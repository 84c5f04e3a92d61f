"""`luciola token`: what is written where, for how long, and what is shown of it."""

import json
import stat
import time

import pytest
from click.testing import CliRunner

from luciola.cli import cli
from luciola.cli.token_record import remember, remembered
from luciola.errors import ConfigError, InvalidArgument, NotFound
from luciola.wire.credentials import (
    TRUSTED,
    Limits,
    Token,
    create_secret,
    load_token,
    mint,
    save_token,
    verify,
)


@pytest.fixture
def secret(tmp_path):
    return create_secret(tmp_path / "secret")


def create(tmp_path, *options):
    return CliRunner().invoke(cli, ["token", "create", "--data", str(tmp_path), *map(str, options)])


def test_token_is_written_for_its_owner_alone_and_shown_without_its_key(tmp_path, secret):
    path = tmp_path / "job.token"
    given = ["--uid", 7, "--gid", 8, "--group", 9, "--role", "trusted", "--lifetime", "2h", "--out", path]
    begun = time.time()
    done = create(tmp_path, *given)
    assert (done.exit_code, done.output) == (0, "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    token = load_token(path)
    identity = verify(secret, token)
    assert (identity.role, identity.uid, identity.gid, identity.groups) == (TRUSTED, 7, 8, (9,))
    assert begun + 7199 <= identity.expires_unix_s <= time.time() + 7200

    shown = CliRunner().invoke(cli, ["token", "show", str(path)])
    as_json = CliRunner().invoke(cli, ["token", "show", "--json", str(path)])
    assert json.loads(as_json.output) == {
        "id": token.id,
        "role": "trusted",
        "uid": 7,
        "gid": 8,
        "groups": [9],
        "path": None,
        "read_only": False,
        "networks": [],
        "cluster": None,
        "key": 0,
        "minted_unix_s": identity.minted_unix_s,
        "expires_unix_s": identity.expires_unix_s,
        "expired": False,
    }
    assert len(bytes.fromhex(token.id)) == 16
    for line in (f"id       {token.id}", "role     trusted", "uid      7", "UTC\n"):
        assert line in shown.output
    key = token.encode().partition(".")[2]
    assert key not in shown.output + as_json.output


def test_without_a_file_the_token_goes_to_standard_output(tmp_path, secret):
    done = create(tmp_path)
    assert verify(secret, Token.parse(done.output.strip()))


def test_token_that_is_there_is_replaced_and_a_link_is_not_followed(tmp_path, secret):
    path, link, other = tmp_path / "job.token", tmp_path / "link", tmp_path / "other"
    path.write_text("old")
    path.chmod(0o644)
    assert create(tmp_path, "--out", path).exit_code == 0
    assert verify(secret, load_token(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    other.write_text("kept")
    link.symlink_to(other)
    assert isinstance(create(tmp_path, "--out", link).exception, InvalidArgument)
    assert (link.is_symlink(), other.read_text()) == (True, "kept")
    names = {each.name for each in tmp_path.iterdir()}
    assert names == {"audit", "job.token", "link", "other", "secret", "tokens", "tokens.lock"}


def test_a_directory_that_is_missing_is_named(tmp_path, secret):
    error = create(tmp_path, "--out", tmp_path / "none" / "job.token").exception
    assert isinstance(error, FileNotFoundError)
    assert error.filename == str(tmp_path / "none" / "job.token")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "not in the range from 1 second to 366 days"),
        ("367d", "not in the range"),
        ("999999999999d", "not in the range"),
        ("-1", "not a number of seconds"),
        ("1e3", "not a number of seconds"),
        ("nan", "not a number of seconds"),
        ("٣", "not a number of seconds"),
        ("1w", "not a number of seconds"),
        ("", "not a number of seconds"),
    ],
)
def test_lifetime_out_of_bounds_is_refused_before_the_secret_is_read(tmp_path, text, message):
    done = create(tmp_path, "--lifetime", text)
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())


@pytest.mark.parametrize(("text", "lifetime_s"), [("5", 5), ("5s", 5), ("2m", 120), ("366d", 366 * 86_400)])
def test_lifetime_has_units(tmp_path, secret, text, lifetime_s):
    begun = time.time()
    token = Token.parse(create(tmp_path, "--lifetime", text).output.strip())
    assert begun + lifetime_s - 1 <= token.described().expires_unix_s <= time.time() + lifetime_s


def test_expired_token_and_one_without_end_are_shown(tmp_path, secret):
    path = tmp_path / "old.token"
    save_token(path, mint(secret, lifetime_s=-100))
    assert "(it has expired)" in CliRunner().invoke(cli, ["token", "show", str(path)]).output
    assert json.loads(CliRunner().invoke(cli, ["token", "show", "--json", str(path)]).output)["expired"]
    save_token(path, mint(secret))
    assert "expires  never\n" in CliRunner().invoke(cli, ["token", "show", str(path)]).output


def test_what_is_no_private_file_is_not_shown(tmp_path, secret):
    path = tmp_path / "open.token"
    assert isinstance(CliRunner().invoke(cli, ["token", "show", str(path)]).exception, NotFound)
    save_token(path, mint(secret))
    path.chmod(0o640)
    assert isinstance(CliRunner().invoke(cli, ["token", "show", str(path)]).exception, ConfigError)


def test_limits_are_in_the_token(tmp_path, secret):
    path = tmp_path / "job.token"
    done = create(tmp_path, "--read-only", "--network", "10.0.0.0/8", "--network", "::1", "--out", path)
    assert (done.exit_code, done.output) == (0, "")
    assert verify(secret, load_token(path)).limits == Limits(read_only=True, networks=("10.0.0.0/8", "::1"))
    shown = CliRunner().invoke(cli, ["token", "show", str(path)]).output
    for line in ("opens    everything, read-only", "from     10.0.0.0/8 ::1"):
        assert line in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--read-only", "--role", "admin"], "administrator"),
        (["--network", "10.0.0.0/40"], "not a network"),
        (["--path", "datasets"], "absolute"),
    ],
)
def test_limits_that_make_no_sense_are_refused(tmp_path, secret, options, message):
    error = create(tmp_path, *options).exception
    assert isinstance(error, InvalidArgument)
    assert message in str(error)


def test_tokens_that_were_made_are_remembered_without_their_keys(tmp_path, secret):
    first, second = (Token.parse(create(tmp_path, "--uid", uid).output.strip()) for uid in (1, 2))
    path = tmp_path / "tokens"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [(each["id"], each["uid"]) for each in remembered(path)] == [(first.id, 1), (second.id, 2)]
    assert first.encode().partition(".")[2] not in path.read_text()
    remember(path, mint(secret, lifetime_s=-100))
    third = Token.parse(create(tmp_path).output.strip())
    assert [each["id"] for each in remembered(path)] == [first.id, second.id, third.id], (
        "the expired one is gone"
    )
    path.write_text("no record\n")
    assert isinstance(create(tmp_path).exception, InvalidArgument)


def test_revoke_needs_a_token_or_all(tmp_path):
    for arguments in ((), ("--all", "0" * 32)):
        done = CliRunner().invoke(cli, ["token", "revoke", "--data", str(tmp_path), *arguments])
        assert done.exit_code == 2
    error = CliRunner().invoke(cli, ["token", "revoke", "--data", str(tmp_path), "no-such-file"]).exception
    assert isinstance(error, NotFound)
    assert "32 hex digits" in str(error)
