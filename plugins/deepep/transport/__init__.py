"""How bytes travel between ranks.

    interface      `Transport`: memory that every rank owns and the others reach, and flags that order it
    members        the ranks that open a transport together, and how they talk before there is one
    shared_memory  processes of one host, on its CPU: each maps the memory of all
    symmetric      GPUs of one host that reach each other over NVLink: torch's symmetric memory
    ipc            several processes on one GPU: CUDA's memory handles and events
    device         what these two share: regions on GPUs, and flags that kernels raise and wait for (`kernel`)
    flags          signals to and waits for all ranks, counted on the device or by this process
    collectives    any hosts: all-to-alls of NCCL or gloo, for normal mode alone
    choose         `open_transport`: the best backend that all ranks can use

Not here: what the bytes mean.
"""
