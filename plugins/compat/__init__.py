"""The originals' packages by their own names, over the plugins: `import flash_mla`, `deep_gemm`, `deep_ep`, …

    flash_mla deep_gemm deep_ep deep_ep_cpp dualpipe eplb    packages and modules, found as top-level names

The distribution `luciola-compat` makes them importable in every process of an environment; `install` does so in this
process alone. Each is an ordinary package with a spec, a file and the version of the original whose names it has. A
name is looked up in the plugin when it is used, so that nothing is imported for the names that are not.

F1  An original always wins: these are found only after every other finder of this process has found nothing.
F2  No file of these is where an original would be installed.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from typing import Final

from ..kernels.errors import BadCall

FOLDER: Final = os.path.dirname(os.path.abspath(__file__))
NAMES: Final = ("deep_ep", "deep_ep_cpp", "deep_gemm", "dualpipe", "eplb", "flash_mla")
BELONGS: Final = {"deep_ep": ("deep_ep", "deep_ep_cpp")}  # what is installed together


def find(name: str) -> ModuleSpec | None:
    """The spec of one of `NAMES`, None for another."""
    return PathFinder.find_spec(name, [FOLDER]) if name in NAMES else None


class _Finder:
    """Finds the names that `install` was asked for."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: object = None, _target: object = None) -> ModuleSpec | None:
        return find(name) if path is None and name in self.names else None


def install(name: str, *, replace: bool = False) -> None:
    """Make one of the originals' packages importable in this process, where `luciola-compat` is not installed.

    With `replace`, it comes before an original that is installed. Modules that were imported before stay as they are in
    the modules that imported them.
    Raises: BadCall if an original is installed, unless `replace`; ValueError for a name that is not one of `NAMES`.
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, not {name!r}")
    names = [each for each in BELONGS.get(name, (name,)) if not _is_ours(each)]
    originals = [found for each in names if (found := _original(each)) is not None]
    if originals and not replace:
        raise BadCall(f"{name} is installed ({originals[0]}): uninstall it, or call install(replace=True)")
    for module in [each for each in sys.modules if each.partition(".")[0] in names]:
        del sys.modules[module]
    if names:
        sys.meta_path.insert(0 if originals else len(sys.meta_path), _Finder(names))


def _is_ours(name: str) -> bool:
    """Return whether an import of this name gives the module of this folder."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None) if module is not None else _spec(name)
    return spec is not None and (spec.origin or "").startswith(FOLDER + os.sep)


def _original(name: str) -> str | None:
    """Return where a module of this name is that is not ours, in words, or None."""
    module = sys.modules.get(name)
    if module is not None:
        return getattr(module, "__file__", None) or "made by this process"
    spec = _spec(name)
    return None if spec is None else spec.origin or "without a file"


def _spec(name: str) -> ModuleSpec | None:
    """Return what an import would find; `importlib.util.find_spec` differs where a module is imported already."""
    specs = (finder.find_spec(name, None) for finder in sys.meta_path)
    return next((spec for spec in specs if spec is not None), None)


__all__ = ["NAMES", "find", "install"]
