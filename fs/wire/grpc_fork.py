"""What a forked child has of its parent's gRPC is never freed there. For modules that import `grpc.aio`.

To free the last channel or server of `grpc.aio` is to end gRPC's polling thread, and to wait until it has ended. A
forked child has the channels without the thread, and would wait forever as soon as its garbage collector finds a
channel that its parent has left. Parents leave some: the error of a call refers to itself through its traceback, and to
the channel.

gRPC's own support for forks (GRPC_ENABLE_FORK_SUPPORT) is about other threads.
"""

import gc
import os

# The collector of a child leaves alone what was there before it. The cost is memory that it shares with its parent.
os.register_at_fork(after_in_child=gc.freeze)
