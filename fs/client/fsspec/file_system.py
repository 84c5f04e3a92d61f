"""`LuciolaFileSystem`: what fsspec finds behind `luciola://`.

F1  Nothing is cached but connections, unless `use_listings_cache` asks for it: every call sees what others have done.
F2  A file that is written as a whole (pipe, put, copy) has its name when it is complete, and never before.
F3  An instance is its storage options. It may be pickled and used after fork; what an environment variable said when
    it was made goes with it, except LUCIOLA_TOKEN: options are written into logs, caches and JSON, and a token is a
    secret. It is looked up where the instance connects.
F4  Every name without "_" works without an event loop, and so within one; those with "_" are coroutines. Operations on
    many files (get, put, copy) are fsspec's, which carry out several at once; pipe makes new small files together.
"""

from .contents import Contents
from .threads import awaitable


class LuciolaFileSystem(Contents):
    """The files of a cluster for fsspec and all that is built on it.

    cluster: its data directory on this machine, or HOST:PORT of its manager; by default what LUCIOLA_DATA or
        LUCIOLA_ADDRESS names. A URL may name it instead: luciola:///DATA_DIR!/path, luciola://HOST:PORT/path.
    secret_file, token, token_file, config: as for `luciola.connect`; `config` may be a mapping of the [client] table.
        A `token` is shown where options are (repr, JSON, task graphs); a `token_file` is read where it is used.
    auto_mkdir: whether writing a file makes the directories above it that are missing.
    use_listings_cache: whether `ls` may answer from earlier listings, for `listings_expiry_time` seconds.
    """

    def _isfilestore(self) -> bool:
        return True  # directories are real, as those of a local disk

    _info = awaitable(Contents.info)
    _ls = awaitable(Contents.ls)
    _exists = awaitable(Contents.exists)
    _isdir = awaitable(Contents.isdir)
    _isfile = awaitable(Contents.isfile)
    _find = awaitable(Contents.find)
    _glob = awaitable(Contents.glob)
    _expand_path = awaitable(Contents.expand_path)
    _du = awaitable(Contents.du)
    _size = awaitable(Contents.size)
    _cat_file = awaitable(Contents.cat_file)
    _cat_ranges = awaitable(Contents.cat_ranges)
    _cat = awaitable(Contents.cat)
    _pipe_file = awaitable(Contents.pipe_file)
    _pipe = awaitable(Contents.pipe)
    _cp_file = awaitable(Contents.cp_file)
    _mv_file = awaitable(Contents.mv_file)
    _get_file = awaitable(Contents.get_file)
    _put_file = awaitable(Contents.put_file)
    _mkdir = awaitable(Contents.mkdir)
    _makedirs = awaitable(Contents.makedirs)
    _rmdir = awaitable(Contents.rmdir)
    _rm_file = awaitable(Contents.rm_file)
    _rm = awaitable(Contents.rm)
    _touch = awaitable(Contents.touch)
    _mv = awaitable(Contents.mv)


__all__ = ["LuciolaFileSystem"]
