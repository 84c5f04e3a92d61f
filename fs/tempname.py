"""Names of temporary files: what a file is called until it is complete."""

import os
import secrets
from typing import Final

NAME_BYTES_MAX: Final = 200  # of the name that will be; with what is added it stays below NAME_MAX (255)


def temp_beside(path: str) -> str:
    """Return a hidden name in the directory of `path` that is unique by its random part.

    It contains the name that the file will have, as far as that fits.
    """
    directory, name = os.path.split(path)
    begin = os.fsdecode(os.fsencode(name)[:NAME_BYTES_MAX])
    return os.path.join(directory, f".{begin}.{secrets.token_hex(4)}.part")


__all__ = ["temp_beside"]
