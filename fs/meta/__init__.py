"""The namespace: names, inodes, layouts, sessions, and the removal of what has no name any more.

    schema       keys and values in the key-value store (drawn in docs/formats.md)
    layout       which chain holds which chunk of a file
    permissions  who may do what
    verbs        one row a verb: its method, its function, how it is run and recorded
    context      one request, and one attempt at it: its transaction, its caller, its effects
    confinement  the same for a token that opens one directory
    retry        why an attempt ends without an outcome
    resolve      from a path to an inode
    operations/  one verb a file: functions of a transaction, without waiting
    sessions     who has which file open: writers (stored), readers (in memory)
    storage      what meta asks of storage nodes; chunks of a content across its chains
    lengths      exact lengths of files that are being written
    truncation   cutting chunks off, in an order that survives a crash
    collector    removes unlinked inodes, detached trees, replaced contents, and sessions of dead clients
    removal_*    clock: the age of what was removed; queue: its records, each read once
    dump         all of the namespace as of one moment
    load*        load: an empty namespace filled from a dump; checks: what each record must be
    inode_counter how many inodes there are
    allocator    inode and content ids, never used twice
    cluster      routing, heartbeats and clients, from the cluster manager
    execution    one request, over all attempts at it; its record
    replies      what is in replies
    service      the handlers of `service Meta`
    dependencies what a service is made of; bootstrap puts it together over a store
    control      storage nodes over gRPC; fake_control, their fake

Everything durable is in the key-value store. In memory there is only what can be made again: read holds
(clients register them again after a restart), the table of write sessions (loaded at start), the round robin
of chains, and lengths that are less than 50 ms old. Several meta processes over one store would need an
owner for each inode's read holds, for its row of the session table, and for truncations in progress; nothing
else is tied to the process.

Times. `mtime`, `ctime` and `change` grow strictly within one process. Reading does not change `atime`: it is
what was set when the file was made or by `utimes`; a stored atime for each read would turn every read into a
write.
"""
