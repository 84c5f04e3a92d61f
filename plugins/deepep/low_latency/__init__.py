"""Low-latency mode: a message for each (token, expert), packed rows for each expert, weights applied on the way back.

methods     the original's methods, which `Buffer` inherits
mode        what they do: checks, halves, hooks, events
layout      where things are in the shared memory
host        sending and receiving in torch, for ranks that share host memory
kernel      the same as Triton kernels; `launch` starts them
reference   the same as loops, given the inputs of all ranks: the specification
"""
