"""`import deep_gemm` in programs that cannot be changed, where `luciola-compat` is not installed.

    from luciola.plugins.deepgemm import shim
    shim.install()
    import deep_gemm                         # this plugin

Provided: `deep_gemm` as `luciola.plugins.compat` has it.
"""

from .. import compat


def install(*, replace: bool = False) -> None:
    """Make this plugin the package `deep_gemm` of this process.

    Raises: BadCall if the original is installed, unless `replace`.
    """
    compat.install("deep_gemm", replace=replace)


__all__ = ["install"]
