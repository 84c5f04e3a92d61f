"""Products of matrices: dense, grouped by rows, grouped by what is summed over.

dense grouped        public functions: check, and run a call
call                 a checked product, and which layer runs it
reference            the specification in torch
kernel launch        Triton kernels, how they are started
hopper               fast path: which products, in which kernel, how started
hopper_products hopper_k_groups hopper_decode    its kernels, in Gluon
tile_scheduler          how their warps go through tiles
tiles                which tile, a pure choice
"""
