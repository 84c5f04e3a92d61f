"""`Buffer`, with the original's names, arguments, results and assertions.

buffer       the buffer itself and its calls in normal mode
low_latency  its calls in low-latency mode
config       `Config`, the tuning knobs of normal mode
"""
