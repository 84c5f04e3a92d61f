"""What a plugin does to stand under the original's name, in programs that cannot be changed."""

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from .errors import BadCall


def must_stand(name: str, package: ModuleType, *, replace: bool) -> bool:
    """Whether `package` is still to be made the module `name` of this process; False if it is that already.

    Raises: BadCall if another one of that name is installed, unless `replace`.
    """
    if sys.modules.get(name) is package:
        return False
    if not replace and (name in sys.modules or find_spec(name) is not None):
        raise BadCall(f"{name} is installed: uninstall it, or call install(replace=True)")
    return True


def add_module(name: str, members: dict[str, Any]) -> ModuleType:
    """Makes a module of that name, with these members, one of this process."""
    module = ModuleType(name, f"Stands for {name}.")
    for each, value in members.items():
        setattr(module, each, value)
    sys.modules[name] = module
    return module


__all__ = ["add_module", "must_stand"]
