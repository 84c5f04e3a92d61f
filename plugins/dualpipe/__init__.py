"""DualPipe: pipelines that are fed from both ends.

schedule   what each rank does in a step, as data
schedules  1F1B, interleaved 1F1B, ZB1P and ZB-V in the same words, to compare with
verify     proves that a schedule works, or names the rank and action where it goes wrong
machine    plays the actions of all ranks against one another; verifier and simulator share it
costs      what a micro-batch costs in each stage
simulate   when each task runs, idle time, peak memory
plan       compares all schedules for a number of devices and their memory, and picks the best
timeline   draws a simulated step as a picture or as text
command    `luciola dualpipe plan`, `plot` and `show`
"""
