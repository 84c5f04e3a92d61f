"""Files for the eyes of one user: secrets, addresses, state."""

import os
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Replaces `path` by `text`, readable by its owner alone: a reader sees the old file or the new one, whole.

    Raises: OSError (a full disk among others); the old file is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


__all__ = ["write_private"]
