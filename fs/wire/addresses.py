"""Where a service listens: "host:port"."""

from ..errors import InvalidArgument


def parse_address(address: str) -> tuple[str, int]:
    """(host, port) of "host:port" or "[v6]:port". Raises: InvalidArgument."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise InvalidArgument(f"not an address (host:port is expected): {address!r}")
    return host.strip("[]"), int(port)


def format_address(host: str, port: int) -> str:
    """Return the inverse of `parse_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


__all__ = ["format_address", "parse_address"]
