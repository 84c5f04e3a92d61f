"""Tests of the plugins need the extra `plugins` (torch, triton): without it they are not collected.

Triton's kernels run in its interpreter here, which it decides when a kernel is defined. Tests of compiled kernels start
a process without TRITON_INTERPRET.
"""

import os
from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("torch") else ["*"]
os.environ["TRITON_INTERPRET"] = "1"
