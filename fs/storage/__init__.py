"""A storage node: the Rust engine and data server (`luciola_core.StorageNode`), and everything it does not decide.

    model        what this node says of its replicas (pure)
    compare      which chunks of a returning replica differ (pure)
    directory    whose data a directory holds, and what a replaced disk has lost
    marks        what it has seen of the stores of mgmtd and meta, so that an older one is refused
    membership   heartbeats, lease, routing: what the node may do now
    recovery     brings a SYNCING successor up to date
    scrub        reads and verifies every chunk, forgets old tombstones
    leftovers    removes chunks of replicas that are no longer part of their chains
    slow_ops     logs updates that make no progress, and what they wait for
    service      the control methods (proto/storage.proto)
    node         joins them: the life of one process, `python -m luciola.storage`

No byte of file data passes through here: replicas exchange chunks over the data plane, in Rust.
"""
