"""How bytes travel between ranks: no module here knows what they mean.

interface      `Link` connects ranks; `Transport` adds regions that every rank maps, and flags that order them
bootstrap      the ranks that open a link together, and what they exchange before there is one
choose         `open_transport`: the fastest backend that all ranks can use
shared_memory  processes of one host, on its CPU
device         GPUs of one host: torch's symmetric memory; several processes on one GPU (`kernel`: flags)
collectives    any hosts: all-to-alls of NCCL or gloo, for normal mode alone
segment_header what all ranks of a call must give alike
event          events, and the stream on which a buffer's calls run
errors         what goes wrong between ranks
"""
