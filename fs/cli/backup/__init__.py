"""`luciola backup` and `luciola restore`: a cluster's names and bytes in a directory, and back.

    command      the commands
    repository   the directory: packs of bytes, one database and one manifest a backup (docs/formats.md)
    source       a cluster's chunks: listing, reading, holding updates
    run          taking a backup: passes over what has changed, then a moment in which nothing does
    verify       reading everything that a backup refers to
    restore      an empty cluster from a backup
    tree         the names in a backup as a file system that can be copied from

Why it works as it does: docs/decisions/0021.
"""
