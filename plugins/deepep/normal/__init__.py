"""Normal mode: each token once to every rank that has one of its experts, and sums back.

tokens      what is dispatched, what comes, and the handle between the two
mode        dispatch and combine through regions that all ranks map
launch      what `mode` does with rows by Triton kernels (`kernel`)
host        the same by torch, on a CPU
collective  dispatch and combine between hosts, by all-to-alls
reference   the specification: what one process computes that has all ranks' inputs
"""
