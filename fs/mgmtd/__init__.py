"""The cluster manager: who is here, and which replica of which chain may do what.

    transitions   the table of chain states, one pure function
    domains       which storage nodes fail together
    placement     which nodes form which chain
    balance       which replicas have to go where, so that chains that exist are placed as new ones
    moves         replicas that go to other nodes while their chains serve
    records       what is stored
    model         what is known and what follows from it, without I/O
    sessions      clients that are alive
    revocations   tokens that are void before they expire
    routing       what is published, in versions and deltas
    store         records in the key-value store; who is primary
    rebuild       a new store of what the storage nodes remember
    service       the asynchronous shell: handlers, clocks, writes
    __main__      the process

It never touches file data, and it calls no other service: nodes and clients call it.
"""
