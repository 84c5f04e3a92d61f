"""`luciola://` for fsspec, and so for pandas, pyarrow, DuckDB, Hugging Face `datasets`, zarr and dask.

    pandas.read_parquet("luciola:///var/lib/luciola!/data/part-0.parquet")
    fs = fsspec.filesystem("luciola", cluster="/var/lib/luciola")

    file_system  the class that fsspec finds by its entry point, with its promises
    base         storage options, connection, names
    names        listings, attributes, and changes of names
    contents     the bytes of files
    files        open files
    ranges       many ranges in one submission
    paths        URLs, and information about a file
    threads      the coroutines' threads

Needs the package `fsspec`, which the rest of Luciola does not: nothing else imports this one.
"""

from .file_system import LuciolaFileSystem

__all__ = ["LuciolaFileSystem"]
