"""Where a service listens: "host:port", and several of these with commas between them."""

from typing import Final

from ..errors import InvalidArgument

ADDRESSES_MAX: Final = 16  # of one service: each has a few processes


def parse_address(address: str) -> tuple[str, int]:
    """(host, port) of "host:port" or "[v6]:port". Raises: InvalidArgument."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise InvalidArgument(f"not an address (host:port is expected): {address!r}")
    return host.strip("[]"), int(port)


def parse_addresses(addresses: str) -> tuple[str, ...]:
    """Return the addresses in "host:port,host:port", in order. Raises: InvalidArgument."""
    found = tuple(addresses.split(","))
    if len(found) > ADDRESSES_MAX:
        raise InvalidArgument(f"at most {ADDRESSES_MAX} addresses are expected, not {len(found)}")
    for address in found:
        parse_address(address)
    return found


def format_address(host: str, port: int) -> str:
    """Return the inverse of `parse_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


__all__ = ["format_address", "parse_address", "parse_addresses"]
