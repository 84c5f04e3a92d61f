"""How many files and connections a service may have open."""

import resource


def raise_limit() -> None:
    """Allow this process as many descriptors as its hard limit does.

    The usual soft limit is 1024, and a service that can open nothing more accepts no connection and may lose its store.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


__all__ = ["raise_limit"]
