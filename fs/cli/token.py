"""`luciola token`: who may use the cluster without holding its secret."""

import os
import re
import time
from pathlib import Path
from typing import Final

import click

from ..wire.credentials import (
    ADMIN,
    CLIENT,
    SERVICE,
    TRUSTED,
    format_unix_s,
    load_secret,
    load_token,
    mint,
    save_token,
)
from .datadir import DataDir
from .options import data_option, json_option
from .output import print_json

ROLES: Final = {"client": CLIENT, "trusted": TRUSTED, "admin": ADMIN}
NAMES: Final = {role: name for name, role in ROLES.items()} | {SERVICE: "service"}
UNITS_S: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
LIFETIME_S_MAX: Final = (
    366 * 86_400
)  # a token cannot be taken back: only its end, or a new secret, makes it void


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
    lifetime_s: int,
    out: Path | None,
) -> None:
    """Make a token, with which a program, a mount or a user may use the cluster until it expires.

    \b
    Example:
      luciola token create --data /var/lib/luciola --uid 1000 --gid 1000 --lifetime 12h --out job.token
    """
    secret = load_secret(DataDir(data_path).secret)
    user = os.geteuid() if uid is None else uid
    group = (os.getegid() if uid is None else user) if gid is None else gid
    made = mint(secret, role=ROLES[role], uid=user, gid=group, groups=groups, lifetime_s=lifetime_s)
    if out is None:
        click.echo(made.encode())
    else:
        save_token(out, made)


@token.command()
@json_option
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def show(file: Path, *, as_json: bool) -> None:
    """Show what the token in FILE says, without its key. Only the cluster can verify that.

    \b
    Example:
      luciola token show job.token
    """
    found = load_token(file)
    claims = found.described()
    has_expired = 0 < claims.expires_unix_s <= time.time()
    # The number of a role that this release does not know is shown as it is.
    role = NAMES.get(claims.role, str(claims.role))
    if as_json:
        print_json(
            {
                "id": found.id,
                "role": role,
                "uid": claims.uid,
                "gid": claims.gid,
                "groups": list(claims.groups),
                "expires_unix_s": claims.expires_unix_s or None,
                "expired": has_expired,
            }
        )
        return
    end = "never" if not claims.expires_unix_s else format_unix_s(claims.expires_unix_s)
    click.echo(f"id       {found.id}")
    click.echo(f"role     {role}")
    click.echo(f"uid      {claims.uid}")
    click.echo(f"gid      {claims.gid}")
    click.echo(f"groups   {' '.join(map(str, claims.groups)) or '-'}")
    click.echo(f"expires  {end}{' (it has expired)' if has_expired else ''}")


__all__ = ["token"]
