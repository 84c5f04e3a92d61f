"""`luciola token`: who may use the cluster without holding its secret."""

import os
import re
import stat
import time
from pathlib import Path
from typing import Final

import click

from ..errors import InvalidArgument, NotADirectory, NotFound
from ..wire import Token, load_cluster
from ..wire.credentials import (
    ADMIN,
    CLIENT,
    NETWORKS_MAX,
    TRUSTED,
    Limits,
    format_unix_s,
    load_secret,
    load_token,
    mint,
    save_token,
)
from ..wire.pb import mgmtd_pb2 as pb
from ..wire.tls import encode_holding
from .administration import ClusterTarget, cluster_options
from .audit import note
from .datadir import DataDir
from .options import data_option, json_option
from .output import print_json, print_table
from .token_record import TokenState, describe, has_expired, remember, remembered

ROLES: Final = {"client": CLIENT, "trusted": TRUSTED, "admin": ADMIN}
UNITS_S: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
LIFETIME_S_MAX: Final = 366 * 86_400
RESOLVE_S: Final = 60.0  # of the token with which the path of another is looked up
ID_DIGITS: Final = re.compile("[0-9a-f]{32}")


def parse_lifetime(_: click.Context, __: click.Parameter, text: str) -> int:
    """Return the seconds in a number of them, or of minutes (90m), hours (12h) or days (7d).

    Raises: click.BadParameter.
    """
    found = re.fullmatch(r"([0-9]{1,12})([smhd]?)", text, re.ASCII)
    if found is None:
        raise click.BadParameter(
            f"{text!r} is not a number of seconds, or of minutes (90m), hours (12h) or days (7d)"
        )
    lifetime_s = int(found[1]) * UNITS_S[found[2]]
    if not 0 < lifetime_s <= LIFETIME_S_MAX:
        raise click.BadParameter(
            f"{text!r} is not in the range from 1 second to {LIFETIME_S_MAX // 86_400} days"
        )
    return lifetime_s


@click.group()
def token() -> None:
    """Make tokens, with which programs and mounts use the cluster without its secret, and look at them.

    \b
    Example:
      luciola token create --data /var/lib/luciola --lifetime 7d --out job.token
    """


@token.command()
@data_option(required=True)
@click.option("--uid", type=click.IntRange(0, 2**32 - 2), help="User the token speaks for.  [default: you]")
@click.option("--gid", type=click.IntRange(0, 2**32 - 2), help="That user's group.")
@click.option(
    "--group", "groups", type=click.IntRange(0, 2**32 - 2), multiple=True, help="Further group (repeatable)."
)
@click.option(
    "--role",
    type=click.Choice(sorted(ROLES)),
    default="client",
    show_default=True,
    help="client: that user only. trusted: a mount, speaks for every user. admin: also changes the cluster.",
)
@click.option(
    "--path",
    metavar="DIRECTORY",
    help="Only names and attributes in this directory of the cluster, which must run.  [default: all]",
)
@click.option("--read-only", is_flag=True, help="Nothing can be changed with it.")
@click.option(
    "--network",
    "networks",
    metavar="CIDR",
    multiple=True,
    help="Only from addresses in this network, as 10.0.0.0/8 (repeatable).  [default: from anywhere]",
)
@click.option(
    "--lifetime",
    "lifetime_s",
    callback=parse_lifetime,
    metavar="SECONDS",
    default="30d",
    show_default=True,
    help="How long it is valid, up to 366 days; also as 90m, 12h or 7d.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write it to, which only you may read then; a token there is replaced.  [default: standard output]",
)
def create(
    data_path: Path,
    *,
    uid: int | None,
    gid: int | None,
    groups: tuple[int, ...],
    role: str,
    path: str | None,
    read_only: bool,
    networks: tuple[str, ...],
    lifetime_s: int,
    out: Path | None,
) -> None:
    """Make a token, with which a program, a mount or a user may use the cluster until it expires.

    \b
    Example:
      luciola token create --data /var/lib/luciola --uid 1000 --gid 1000 --lifetime 12h --out job.token
      luciola token create --data /var/lib/luciola --path /datasets --read-only --out data.token
    """
    data = DataDir(data_path)
    secret = load_secret(data.secret)
    if len(networks) > NETWORKS_MAX:
        raise click.UsageError(f"--network: at most {NETWORKS_MAX}")
    limits = Limits(
        read_only=read_only,
        root=0 if path is None else _directory(data, secret, path),
        path=b"" if path is None else os.fsencode(path),
        audience=load_cluster(data.cluster).cluster_id if data.cluster.exists() else "",
        networks=networks,
    )
    user = os.geteuid() if uid is None else uid
    group = (os.getegid() if uid is None else user) if gid is None else gid
    made = mint(
        secret, role=ROLES[role], uid=user, gid=group, groups=groups, lifetime_s=lifetime_s, limits=limits
    )
    remember(data.tokens, made)  # first: one that is given away can be revoked
    note(data, "token create", {**describe(made)})
    holding = _holding(data, made, lifetime_s)
    if out is None:
        click.echo(f"{made.encode()}\n{holding}", nl=False)
    else:
        save_token(out, made, holding=holding)


def _holding(data: DataDir, token: Token, lifetime_s: int) -> str:
    """Return what its holder needs beside the token to reach a cluster of several machines; nothing of others."""
    if not data.cluster.exists() or not (cluster := load_cluster(data.cluster)).tls_directory:
        return ""
    from .certificate import equip_holder

    return encode_holding(equip_holder(cluster, f"token {token.id}", lifetime_s))


def _directory(data: DataDir, secret: bytes, path: str) -> int:
    """Return the inode of a directory. Raises: InvalidArgument, NotFound, NotADirectory; as `connect`."""
    from ..client import connect  # the other tokens are made without the native module

    if not path.startswith("/"):
        raise InvalidArgument("a path on the cluster is absolute: write /datasets", path=path)
    token = mint(secret, role=TRUSTED, lifetime_s=RESOLVE_S)
    with connect(load_cluster(data.cluster).mgmtd_lane, token=token.encode()) as files:
        about = files.stat(path)
    if not stat.S_ISDIR(about.st_mode):
        raise NotADirectory("a token opens a directory and what is below it", path=path)
    return about.st_ino


@token.command()
@json_option
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def show(file: Path, *, as_json: bool) -> None:
    """Show what the token in FILE says, without its key. Only the cluster can verify that.

    \b
    Example:
      luciola token show job.token
    """
    found = describe(load_token(file))
    if as_json:
        print_json({**found, "expired": has_expired(found)})
        return
    click.echo(f"id       {found['id']}")
    click.echo(f"role     {found['role']}")
    click.echo(f"uid      {found['uid']}")
    click.echo(f"gid      {found['gid']}")
    click.echo(f"groups   {' '.join(map(str, found['groups'])) or '-'}")
    click.echo(f"opens    {_opens(found)}")
    click.echo(f"from     {' '.join(found['networks']) or 'anywhere'}")
    click.echo(f"cluster  {found['cluster'] or 'any with the same secret'}")
    click.echo(f"expires  {_end(found)}{' (it has expired)' if has_expired(found) else ''}")


@token.command(name="list")
@cluster_options
@json_option
def list_tokens(target: ClusterTarget, *, as_json: bool) -> None:
    """List tokens: with --data those that were made there and have not expired, and those that are revoked.

    A holder of the secret can make tokens elsewhere: these are listed only once they are revoked.

    \b
    Example:
      luciola token list --data /var/lib/luciola
    """
    revoked = target.ask(lambda manager: manager.revoked())
    made = [] if target.data_path is None else remembered(DataDir(target.data_path).tokens)
    made = [each for each in made if not has_expired(each)]
    void = {each.id.hex(): each.expires_unix_s or None for each in revoked.tokens}
    floors = {each.key_id: each.minted_unix_s for each in revoked.minted_before}
    states = {
        each["id"]: "revoked"
        if each["id"] in void or (each["minted_unix_s"] or 0) < floors.get(each["key"], 0)
        else "valid"
        for each in made
    }
    elsewhere = {each: end for each, end in void.items() if each not in states}
    if as_json:
        print_json(
            {
                "tokens": [{**each, "state": states[each["id"]]} for each in made],
                "revoked_elsewhere": [
                    {"id": each, "expires_unix_s": end} for each, end in sorted(elsewhere.items())
                ],
                "void_if_minted_before": [
                    {"key": key, "minted_unix_s": time} for key, time in sorted(floors.items())
                ],
            }
        )
        return
    rows = [
        (each["id"], states[each["id"]], each["role"], str(each["uid"]), _opens(each), _end(each))
        for each in made
    ]
    rows += [
        (each, "revoked", "?", "?", "?", "never" if end is None else format_unix_s(end))
        for each, end in sorted(elsewhere.items())
    ]
    print_table(("ID", "STATE", "ROLE", "UID", "OPENS", "EXPIRES"), rows, right=(3,))
    for key, minted_unix_s in sorted(floors.items()):
        click.echo(f"key {key}: tokens made before {format_unix_s(minted_unix_s)} are revoked")


@token.command()
@click.argument("tokens", metavar="[ID|FILE]...", nargs=-1)
@click.option("--all", "is_all", is_flag=True, help="Every token that was made until now.")
@cluster_options
def revoke(target: ClusterTarget, tokens: tuple[str, ...], *, is_all: bool) -> None:
    """Make tokens void, for good: named by their ids, or by files that hold them. It takes effect within seconds.

    Connections of these tokens end at once, and mounts with them fail; those with the secret make another. Tokens that
    services make for themselves stay.

    \b
    Example:
      luciola token revoke 0123456789abcdef0123456789abcdef --data /var/lib/luciola
      luciola token revoke --all --data /var/lib/luciola
    """
    if is_all == bool(tokens):
        raise click.UsageError("name tokens, by id or file, or say --all")
    known = [] if target.data_path is None else remembered(DataDir(target.data_path).tokens)
    ends = {each["id"]: each["expires_unix_s"] or 0 for each in known}
    revocations = pb.Revocations(tokens=[_named(each, ends) for each in tokens])
    if is_all:
        # Of a token that is made in this second it cannot be said whether it was before: it stays.
        keys = {0, *(each["key"] for each in known)}
        now = int(time.time())
        revocations.minted_before.extend(pb.MintedBefore(key_id=key, minted_unix_s=now) for key in keys)
    target.ask(lambda manager: manager.revoke(revocations))
    click.echo("revoked: every token that was made until now" if is_all else f"revoked: {len(tokens)}")


def _named(text: str, ends: dict[str, int]) -> pb.RevokedToken:
    """Return the token with the id `text`, or that in a file of this name. Raises: NotFound; as `load_token`."""
    if ID_DIGITS.fullmatch(text.lower()):
        return pb.RevokedToken(id=bytes.fromhex(text), expires_unix_s=ends.get(text.lower(), 0))
    if not Path(text).exists():
        raise NotFound(
            "neither the id of a token, 32 hex digits (`luciola token show`), nor a file", path=text
        )
    found: Token = load_token(Path(text))
    return pb.RevokedToken(id=bytes.fromhex(found.id), expires_unix_s=found.described().expires_unix_s)


def _opens(token: TokenState) -> str:
    where = "everything" if token["path"] is None else token["path"]
    return f"{where}, read-only" if token["read_only"] else where


def _end(token: TokenState) -> str:
    return "never" if token["expires_unix_s"] is None else format_unix_s(token["expires_unix_s"])


__all__ = ["token"]
