"""A cluster's certificates for tests: `world.machine("mgmtd")`, `world.holder()`, and those of a stranger."""

import datetime as dt
from collections.abc import Callable

from luciola.wire.certificates import Issuer, Subject
from luciola.wire.tls import Material, Tls

CLUSTER = "00112233aabbccdd"
HERE = "127.0.0.1"


class World:
    """One authority, and what it issues. `ago_s`: how long ago that was."""

    def __init__(self) -> None:
        self.issuer = Issuer.create(CLUSTER)

    def machine(
        self, *roles: str, address: str = HERE, ago_s: float = 0, lifetime_s: float = 3600
    ) -> Material:
        now = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=ago_s)
        return self.issuer.equip(Subject("a machine", address, roles), lifetime_s=lifetime_s, now=now)

    def holder(self) -> Material:
        return self.issuer.equip(Subject("a program"))

    def invitation(self) -> Material:
        return self.issuer.equip(Subject("invitation", is_invitation=True))


def tls(material: Material | Callable[[], Material]) -> Tls:
    return Tls(CLUSTER, material if callable(material) else lambda: material)
