"""Calls in the fast path for Hopper: on a GPU as it is, elsewhere simulated from its source, against the reference."""

from contextlib import nullcontext

import mla_cases as cases
from gluon_simulator import Wrong, launch_simulated, no_bugs
from luciola.plugins.flashmla import using_layer
from luciola.plugins.kernels.layers import launching_with, recording


def fast(call, *, seed=0, planted=no_bugs):
    """The result in the fast path, and the names of the kernels that ran."""
    simulated = launch_simulated(seed=seed, planted=planted)
    with (
        nullcontext() if cases.DEVICE == "cuda" else launching_with(simulated),
        using_layer("hopper"),
        recording() as launches,
    ):
        result = call()
    return result, [each.kernel for each in launches]


def check(call, kernel, *, absolute=8e-4, **named):
    """That the kernel ran, and that the reference says the same."""
    (out, *others), kernels = fast(call, **named)
    assert kernel in kernels, f"{kernel} was not among {kernels}"
    with using_layer("reference"):
        want, *other_wants = call()
    cases.assert_close(out, want, absolute=absolute)
    for mine, other in zip(others, other_wants, strict=True):
        cases.assert_close_lse(mine, other)


def finds(call, kernel, planted):
    """Whether some of ten runs with a bug that was planted fails."""
    for seed in range(10):
        try:
            check(call, kernel, seed=seed, planted=planted)
        except (AssertionError, Wrong):
            return True
    return False
