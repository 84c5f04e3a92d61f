"""Names of a package that are imported from their modules when they are used, so that importing it stays quick."""

from collections.abc import Callable, Container, Mapping
from importlib import import_module
from typing import Any


def lazy(package: str, homes: Mapping[str, str], submodules: Container[str] = ()) -> Callable[[str], Any]:
    """Make a module's `__getattr__` from the module (relative to `package`, or absolute) of names with blanks between.

    A name is looked up in its home when it is asked for, and a submodule is imported; nothing else is.
    """
    home_of = {name: home for home, names in homes.items() for name in names.split()}

    def get(name: str) -> Any:
        if name in submodules:
            return import_module(f"{package}.{name}")
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(home_of[name], package), name)

    return get


__all__ = ["lazy"]
