"""Names of files that are not complete yet."""

import os
import secrets
from typing import Final

NAME_BYTES_MAX: Final = 200  # of the name that will be; with what is added it stays below NAME_MAX (255)


def hidden_beside(path: str) -> str:
    """A name that nobody uses in the directory of `path`: hidden, and told apart from others by chance.

    It says which file it will be, as far as its bytes fit.
    """
    directory, name = os.path.split(path)
    begin = os.fsdecode(os.fsencode(name)[:NAME_BYTES_MAX])
    return os.path.join(directory, f".{begin}.{secrets.token_hex(4)}.part")


__all__ = ["hidden_beside"]
