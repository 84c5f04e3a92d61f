"""`luciola token`: who may use the cluster without holding its secret."""

import math
import os
from pathlib import Path
from typing import Final

import click

from ..wire.credentials import ADMIN, CLIENT, TRUSTED, load_secret, mint
from .datadir import DataDir
from .options import data_option

ROLES: Final = {"client": CLIENT, "trusted": TRUSTED, "admin": ADMIN}
DAYS_MAX: Final = 36_500.0  # a credential for longer is the secret


@click.command()
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
    "--days",
    type=click.FloatRange(min=0, min_open=True, max=DAYS_MAX),
    default=30.0,
    show_default=True,
    help="Lifetime.",
)
def token(
    data_path: Path, uid: int | None, gid: int | None, groups: tuple[int, ...], role: str, days: float
) -> None:
    """Make a token, with which a program or user may use the cluster until it expires.

    \b
    Example:
      luciola token --data /var/lib/luciola --uid 1000 --gid 1000 > token
    """
    if math.isnan(days):
        raise click.BadParameter("not a number", param_hint="--days")
    secret = load_secret(DataDir(data_path).secret)
    user = os.geteuid() if uid is None else uid
    group = (os.getegid() if uid is None else user) if gid is None else gid
    made = mint(secret, role=ROLES[role], uid=user, gid=group, groups=groups, lifetime_s=days * 86_400)
    click.echo(made.encode())


__all__ = ["token"]
