"""How bytes travel between ranks: one interface, several backends.

    interface      `Transport`: memory that every rank owns and the others reach, and flags that order it
    members        the ranks that open a transport together, and how they talk before there is one
    shared_memory  processes of one host, on its CPU: each maps the memory of all
    messages       any hosts: gloo connections carry what was written
    choose         `open_transport`: the best backend that all ranks can use

Not here: what the bytes mean.
"""
