"""How bytes travel between ranks: one interface, several backends.

    interface      `Transport`: memory that every rank owns and the others reach, and flags that order it
    members        the ranks that open a transport together, and how they talk before there is one
    shared_memory  processes of one host, on its CPU: each maps the memory of all
    symmetric      GPUs that reach each other over NVLink: torch's symmetric memory
    ipc            GPUs of one host, or one GPU for several processes: CUDA's handles and events
    device         what both share: regions on GPUs, and flags that kernels raise and wait for (`kernel`)
    mixed          several hosts: shared memory in each, messages between them
    outboxes       regions for peers whose memory is not reached, which these two have:
    messages       any hosts: gloo connections carry what was written
    collectives    any hosts: all-to-alls of the process group's own backend
    choose         `open_transport`: the best backend that all ranks can use

Not here: what the bytes mean.
"""
