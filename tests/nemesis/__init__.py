"""Two faults at a time on a cluster of machines, programs that record what they see, and a judge of the histories.

machines    machines on this one: namespaces, a disk, a kernel identity and a boot clock for each
faults      what happens to them, planned from a seed
workloads   the programs: what each does, and how it writes its history down
histories   operations as they were recorded, by key
models      what each kind of object may answer
checker     whether a history is linearizable
run         the command: one run, its verdict and its report
"""
