"""Makes the originals' names importable in every process of the environment that this is installed in.

`luciola-compat.pth` imports this at the start of each process; it loads nothing else until one of the names is asked
for. An original always wins: what any other finder finds comes first, in whatever order they were added.
"""

import sys
from importlib.machinery import ModuleSpec

NAMES = (
    "deep_ep",
    "deep_ep_cpp",
    "deep_gemm",
    "dualpipe",
    "eplb",
    "flash_mla",
)  # as luciola.plugins.compat has them


class Finder:
    """The last of all finders."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The spec of one of the names, unless a finder after this one has another module of it."""
        del target
        if path is not None or name not in NAMES:
            return None
        later = sys.meta_path[sys.meta_path.index(cls) + 1 :]
        specs = (finder.find_spec(name, None) for finder in later)
        original = next((spec for spec in specs if spec is not None), None)
        if original is not None:
            return original
        try:
            from luciola.plugins.compat import find
        except ImportError:  # Luciola is not here, or not any more
            return None
        return find(name)


if Finder not in sys.meta_path:
    sys.meta_path.append(Finder)

__all__ = ["NAMES", "Finder"]
