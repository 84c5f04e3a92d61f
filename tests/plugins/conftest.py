"""Tests of the plugins need the extra `plugins` (torch, triton): without it they are not collected.

Triton's kernels run in its interpreter here, which it decides when a kernel is defined. Tests of compiled kernels start
a process without TRITON_INTERPRET. LUCIOLA_TEST_DEVICE=cuda (`make gpu`) runs the kernels' tests on a GPU instead.
"""

import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from importlib.util import find_spec
from multiprocessing import resource_tracker

import pytest

from pipeline_ranks import Ranks
from warm_python import WarmPython

DEVICE = os.environ.get("LUCIOLA_TEST_DEVICE", "cpu")

collect_ignore_glob = [] if find_spec("torch") else ["*"]
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Forks the ranks of each case from one parent that has imported torch; `of` gives it other cases."""
    made = Ranks()
    yield made
    made.close()


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """In place of sys.executable, for programs that would import torch."""
    made = WarmPython(tmp_path_factory.mktemp("python"))
    yield made.path
    made.close()


@pytest.fixture
def warm_spawn(warm_python: str) -> Iterator[None]:
    """Processes that this one spawns are programs of `warm_python`."""
    resource_tracker.ensure_running()  # by the executable of before: it lives longer
    multiprocessing.set_executable(warm_python)
    yield
    multiprocessing.set_executable(sys.executable)


@pytest.fixture(scope="module")
def two_at_once() -> Iterator[Executor]:
    """For processes that compile: two of them run while the tests wait for their results."""
    with ThreadPoolExecutor(2) as threads:
        yield threads
        threads.shutdown(cancel_futures=True)


@pytest.fixture
def kernel_device() -> Iterator[str]:
    """The device on which tests of kernels make their tensors; one thread on a CPU, where the interpreter is slow."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_default_device(DEVICE)
    yield DEVICE
    torch.set_default_device("cpu")
    torch.set_num_threads(threads)
