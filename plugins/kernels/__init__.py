"""What the plugins with GPU kernels share.

layers   which layer runs a call: the torch reference or the Triton kernels
ahead    kernels compiled without a GPU: warm caches, machine code and its gates
quantize casts to FP8 with one scale a block
errors   what bad arguments raise
"""
