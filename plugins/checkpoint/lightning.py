"""Lightning's checkpoints on a location: `Trainer(plugins=[LuciolaCheckpointIO()])`.

A checkpoint of Lightning is one file, written by rank 0. Here it gets its name when it is complete and durable; until
then, and after an error, the name refers to the old file. Paths are plain ones or luciola:// (`lu:` is no URL, and
Lightning makes a local directory of it), as in `ModelCheckpoint(dirpath="luciola:///DATA_DIR!/runs/7")`, which lists
through fsspec.

FSDPStrategy with sharded checkpoints and ModelParallelStrategy do not use a CheckpointIO: there, and for resharding,
asynchronous saves and checksums, call `Checkpoints` from a callback.

Source: lightning.fabric.plugins.io.checkpoint_io.CheckpointIO.
"""

import os
from typing import Any

from lightning.fabric.plugins import CheckpointIO

from luciola.client import open_location
from luciola.errors import InvalidArgument

from .torch_io import load_object, save_object


class LuciolaCheckpointIO(CheckpointIO):  # type: ignore[misc] # (lightning is not followed)
    """Saves, loads and removes Lightning's checkpoints.

    `secret_file`, `token`, `token_file`: credentials for luciola://HOST:PORT, before those of the environment.
    """

    def __init__(
        self,
        *,
        secret_file: str | os.PathLike[str] | None = None,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
    ) -> None:
        self._credentials: dict[str, Any] = {
            "secret_file": secret_file,
            "token": token,
            "token_file": token_file,
        }

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Save as `save_object`. Raises: InvalidArgument for storage options; NoSpace; OSError."""
        if storage_options is not None:
            raise InvalidArgument("there are no storage options: give credentials to LuciolaCheckpointIO")
        save_object(checkpoint, path, **self._credentials)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = None,
        weights_only: bool | None = None,  # noqa: FBT001
    ) -> dict[str, Any]:
        """Load as `load_object`: by torch's weights-only loading, unless `weights_only=False` trusts the file."""
        found: dict[str, Any] = load_object(
            path, map_location=map_location, weights_only=weights_only is not False, **self._credentials
        )
        return found

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a file, or a directory that another strategy has written; nothing if it does not exist."""
        file_system, name = open_location(path, **self._credentials)
        if file_system.isdir(name):
            file_system.rmtree(name)
        elif file_system.exists(name):
            file_system.remove(name)


__all__ = ["LuciolaCheckpointIO"]
