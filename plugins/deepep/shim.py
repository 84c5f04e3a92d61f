"""`import deep_ep` in programs that cannot be changed, where `luciola-compat` is not installed.

    from luciola.plugins.deepep import shim
    shim.install()
    import deep_ep                           # this plugin

Provided: `deep_ep` and `deep_ep_cpp` as `luciola.plugins.compat` has it.
"""

from .. import compat


def install(*, replace: bool = False) -> None:
    """Make this plugin the package `deep_ep` of this process.

    Raises: BadCall if the original is installed, unless `replace`.
    """
    compat.install("deep_ep", replace=replace)


__all__ = ["install"]
