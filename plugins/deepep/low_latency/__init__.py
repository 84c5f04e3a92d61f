"""Low-latency mode: a message for each (token, expert), packed rows for each expert, weights applied on the way back.

mode        the original's calls: checks, halves, hooks, events
layout      where things are in the shared memory, and the tensors that a dispatch fills
host        sending and receiving in torch, for ranks that share host memory
kernel      the same as Triton kernels; `launch` starts them
quantize    casts on the way: FP8 and LogFMT
reference   the same as loops, given the inputs of all ranks: the specification
"""
