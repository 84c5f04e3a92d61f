"""Where a service listens: "host:port", and several of these with commas between them."""

import argparse
import ipaddress
from typing import Final

from ..config import PORT_MAX
from ..errors import ConfigError, InvalidArgument

PORT_DIGITS_MAX: Final = 5
ADDRESSES_MAX: Final = 16  # of one service: each has a few processes


def parse_address(address: str) -> tuple[str, int]:
    """(host, port) of "host:port" or "[v6]:port". Raises: InvalidArgument."""
    host, colon, port = address.rpartition(":")
    is_number = port.isascii() and port.isdecimal() and len(port) <= PORT_DIGITS_MAX
    if not colon or not host or not is_number or int(port) > PORT_MAX:
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


def port_argument(text: str) -> int:
    """Return the first of a service's two ports on a command line; 0: free ones. Raises: argparse.ArgumentTypeError."""
    if not (text.isascii() and text.isdecimal()) or int(text) >= PORT_MAX:
        raise argparse.ArgumentTypeError(f"a port from 1 to {PORT_MAX - 1}, or 0, is expected, not {text!r}")
    return int(text)


def second_port(first: int) -> int:
    """Return the port beside `first`; a free one (0) beside a free one."""
    return first + 1 if first else 0


def ip_address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address that `host` is, without its zone, and IPv4 where IPv6 carries that; None for a name."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches `host`, a name or an IP address."""
    address = ip_address_of(host)
    return host == "localhost" if address is None else address.is_loopback


def require_loopback(host: str, *, protected: bool, insecure: bool) -> None:
    """Raises: ConfigError if a service would listen for other machines in clear text, and was not allowed to."""
    if not protected and not insecure and not is_loopback(host):
        raise ConfigError(
            f"listening on {host} would send files and names in clear text to other machines: listen on 127.0.0.1, "
            "use a cluster that `luciola init` made, with [storage] wire = encrypt, or say --insecure on a network of "
            "trusted machines"
        )


__all__ = [
    "format_address",
    "ip_address_of",
    "is_loopback",
    "parse_address",
    "parse_addresses",
    "port_argument",
    "require_loopback",
    "second_port",
]
