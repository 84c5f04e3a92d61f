"""`import flash_mla` in programs that cannot be changed, where `luciola-compat` is not installed.

    from luciola.plugins.flashmla import shim
    shim.install()
    import flash_mla                         # this plugin

Provided: `flash_mla` as `luciola.plugins.compat` has it.
"""

from .. import compat


def install(*, replace: bool = False) -> None:
    """Make this plugin the package `flash_mla` of this process.

    Raises: BadCall if the original is installed, unless `replace`.
    """
    compat.install("flash_mla", replace=replace)


__all__ = ["install"]
