"""What the plugins with GPU kernels share.

layers   which layer runs a call: the torch reference, the Triton kernels or the fast path; the device's size
ahead    kernels compiled without a GPU: warm caches, machine code and its gates
quantize casts to FP8 with one scale a block
kernel   pieces of Triton kernels
errors   what bad arguments raise
checks   what operators ask of a tensor
ranks    processes of a run find one another
"""
