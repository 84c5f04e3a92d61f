"""One cluster behind fsspec: storage options, the connection, and what URLs and names mean."""

import asyncio
import os
from collections.abc import Mapping

from fsspec.asyn import AsyncFileSystem, get_loop
from fsspec.config import apply_config

from ...config import ClientConfig, from_table
from ...errors import InvalidArgument
from ..file_system import FileSystem
from ..location import Location, open_location
from .paths import Place, canonical, location_of, resolved_cluster, split_url, text_of


class _Resolved(type(AsyncFileSystem)):  # type: ignore[misc]
    """Storage options are made complete before fsspec compares, caches and pickles them (F3)."""

    def __call__(cls, cluster: str | os.PathLike[str] | None = None, **options: object) -> object:
        complete = apply_config(cls, {**options, **({} if cluster is None else {"cluster": cluster})})
        names = ("cluster", "secret_file", "token", "token_file")
        resolved = resolved_cluster(*(complete.pop(name, None) for name in names))
        complete |= {name: value for name, value in zip(names, resolved, strict=True) if value is not None}
        return super().__call__(**complete)


class Cluster(AsyncFileSystem, metaclass=_Resolved):  # type: ignore[misc]
    """What `LuciolaFileSystem` is before it can do anything."""

    protocol = "luciola"
    root_marker = "/"
    _pid: int

    def __init__(  # noqa: PLR0913 (storage options)
        self,
        cluster: str,
        *,
        secret_file: str | None = None,
        token: str | None = None,
        token_file: str | None = None,
        config: ClientConfig | Mapping[str, object] | None = None,
        auto_mkdir: bool = True,
        use_listings_cache: bool = False,
        **options: object,
    ) -> None:
        super().__init__(use_listings_cache=use_listings_cache, **options)
        self.cluster = cluster
        self.auto_mkdir = auto_mkdir
        self._secret_file = secret_file
        self._token = token
        self._token_file = token_file
        if isinstance(config, Mapping):
            config = from_table(ClientConfig, dict(config), where="client")
        self._config = config
        self._files: FileSystem | None = None
        self._prefix = canonical(str(Location("/", cluster)))
        # A URL of another cluster must not name a file of this one.
        self._strip_protocol = self._own_name  # type: ignore[method-assign]

    @property
    def files(self) -> FileSystem:
        """The cluster's own interface. Connects if need be; the connection is that of `open_location`."""
        files = self._files
        if files is None or files.connection.is_closed:
            location = location_of(self.cluster, self._secret_file, self._token, self._token_file)
            opened, _ = open_location(location, config=self._config)
            assert isinstance(opened, FileSystem), "the location names a cluster"
            files = self._files = opened
        return files

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """fsspec's event loop. A forked child gets its own."""
        if self._pid != os.getpid():
            self._loop = None if self.asynchronous else get_loop()
            self._pid = os.getpid()
        return self._loop

    @property
    def fsid(self) -> str:
        return f"luciola-{self.files.cluster_id}"

    # Names.

    @classmethod
    def _strip_protocol(cls, path: object) -> str | list[str]:
        if isinstance(path, list):
            return [canonical(text_of(each)) for each in path]
        return canonical(text_of(path))

    def _own_name(self, path: object) -> str | list[str]:
        if isinstance(path, list):
            return [self._place(each).name for each in path]
        return self._place(path).name

    def _place(self, path: object) -> Place:
        """Raises: InvalidArgument for a URL of another cluster."""
        text = text_of(path)
        name = canonical(text)
        if name == self._prefix or name.startswith(f"{self._prefix}/"):
            return Place(name, name.removeprefix(self._prefix) or "/")
        other, _ = split_url(text)
        if other is not None or not name.startswith("/"):
            raise InvalidArgument(
                f"this is a file of another cluster than {self.cluster}: open its URL", path=text
            )
        return Place(name, name)

    def _path(self, path: object) -> str:
        return self._place(path).path

    @classmethod
    def _parent(cls, path: str) -> str:
        return canonical(text_of(path)).rpartition("/")[0] or cls.root_marker

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        cluster, _ = split_url(path)
        return {} if cluster is None else {"cluster": cluster}

    def unstrip_protocol(self, name: str) -> str:
        """Return the URL of a path."""
        return str(Location(self._path(name), self.cluster))


__all__ = ["Cluster"]
