"""Normal mode: each token once to every rank that has one of its experts, and sums back.

tokens      what is dispatched, what arrives, and the handle between the two
layout      which token goes where
arguments   checks of what the calls of all modes are given
dispatcher  dispatch and combine through regions that all ranks map
row_ops     what it does with rows, by torch on a CPU; `launch` does so by Triton kernels (`kernel`)
collective  dispatch and combine between hosts, by all-to-alls
reference   the specification: what one process computes that has all ranks' inputs
"""
