"""Families of the metadata service: whether it serves, and then what it holds."""

from collections.abc import Sequence

from ..metrics import Family, gauge
from .service import MetaService


def meta_families(service: MetaService | None) -> Sequence[Family]:
    """Return the metrics of `service`; None: this process is a standby, or has no store yet."""
    families = [
        gauge(
            "luciola_meta_primary", "Whether this process serves the namespace.", float(service is not None)
        )
    ]
    if service is None:
        return families
    counts = service.counts()
    return [
        *families,
        gauge("luciola_inodes", "Files, directories and links.", service.inode_count),
        gauge("luciola_write_sessions", "Files that clients have open for writing.", counts.write_sessions),
        gauge("luciola_read_holds", "Files that clients have open for reading.", counts.read_holds),
        gauge(
            "luciola_meta_removal_queue",
            "Removed files and contents whose chunks are not removed yet; counted up to 10000 of each.",
            counts.gc_queue,
        ),
    ]


__all__ = ["meta_families"]
