"""States of one replica, with the numbers of proto/mgmtd.proto (docs/architecture.md, "States of a replica")."""

import enum


class Public(enum.IntEnum):
    """What is published of a replica: `PublicState`."""

    SERVING = 1
    LASTSRV = 2
    SYNCING = 4
    WAITING = 8
    OFFLINE = 16


class Local(enum.IntEnum):
    """What a node says of its own replica: `LocalState`."""

    UPTODATE = 1
    ONLINE = 2
    OFFLINE = 4


class Data(enum.IntEnum):
    """What a replica still has of all that was acknowledged to it while it served: `ReplicaData`."""

    COMPLETE = 0
    PARTIAL = (
        1  # its machine was restarted without a clean stop: what was synced is there, the rest may not be
    )
    LOST = 2  # its disk was replaced


__all__ = ["Data", "Local", "Public"]
