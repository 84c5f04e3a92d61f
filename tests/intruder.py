"""Tries every door of a cluster as another user, and prints those that opened, as JSON.

Run by tests/integration/test_doors.py, as root, with a plan on standard input. Everything is imported before the
privileges are given up, because that user need not be able to read this checkout.

    {"uid": 65534, "secret": hex or "", "ports": ["127.0.0.1:1", ...], "sockets": [...], "abstract": [...],
     "paths": [...], "pids": [...]}

With `secret` the tokens are real: the same attempts must then succeed, or the test would prove nothing.
"""

import encodings.idna  # noqa: F401 (getaddrinfo wants it when it can be loaded no more)
import json
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

import grpc

from luciola.errors import Error
from luciola.wire import SERVICE, Token, handshake, methods, mint, parse_address

TIMEOUT_S = 30.0
HARMLESS = ("GetRouting", "ListClients", "Space", "Status")  # what may be called with a real token


def tokens(secret: str) -> dict[str, Token]:
    if secret:
        return {"real token": mint(bytes.fromhex(secret), role=SERVICE)}
    forged = mint(os.urandom(32), role=SERVICE, uid=0, gid=0, groups=())
    return {
        "forged token": forged,
        "token without a key": Token(forged.claims, bytes(32)),
        "empty token": Token(b"", bytes(32)),
    }


def try_stream(connect, shown: dict[str, Token]) -> list[str]:
    """A lane or data-plane connection; what opened. Raises ValueError if it is no such door."""
    opened = []
    with connect() as raw:
        hello = receive(raw, handshake.HELLO.size)
        if hello[:4] != b"LUC1":
            raise ValueError(hello[:16])
        kind = hello[4]
        # Frames without a handshake: whatever is said, nothing but a refusal may come back.
        raw.sendall(b"\0" * 4096)
        answer = b""
        with suppress(ConnectionError, TimeoutError):
            while piece := raw.recv(4096):
                answer += piece
        if answer not in (b"", handshake.REFUSAL):
            opened.append(f"answered {answer[:32].hex()} without a handshake")
    for name, token in shown.items():
        with connect() as raw:
            side = handshake.ClientSide(token, kind=kind)
            raw.sendall(side.answer(receive(raw, handshake.HELLO.size)))
            welcome = b""
            with suppress(ConnectionError, TimeoutError):
                welcome = receive(raw, handshake.WELCOME.size)
            with suppress(Error):
                if welcome:
                    side.finish(welcome)
                    opened.append(name)
            if welcome[:1] == b"\0" and name not in opened:
                opened.append(f"{name} (without proof)")
    return opened


def try_grpc(address: str, shown: dict[str, Token]) -> list[str]:
    opened = []
    headers = {name: (("authorization", f"Bearer {token.encode()}"),) for name, token in shown.items()}
    with grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        for name, metadata in {"no token": (), **headers}.items():
            if name == "no token" and "real token" in shown:
                continue
            for method in methods.ALL:
                if method.streams or ("real token" in shown and method.name not in HARMLESS):
                    continue
                try:
                    channel.unary_unary(method.path)(b"", metadata=metadata, timeout=TIMEOUT_S)
                    opened.append(f"{name}: {method.path}")
                except grpc.RpcError as error:
                    if error.code() != grpc.StatusCode.UNAUTHENTICATED:
                        opened.append(f"{name}: {method.path}: {error.code()}")
    return opened


def receive(raw: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = raw.recv(count - len(data))
        if not piece:
            raise ConnectionError
        data += piece
    return data


def try_port(address: str, shown: dict[str, Token]) -> list[str]:
    def connect() -> socket.socket:
        return socket.create_connection(parse_address(address), timeout=TIMEOUT_S)

    try:
        return try_stream(connect, shown)
    except (ValueError, TimeoutError):
        return try_grpc(address, shown)


def try_socket(path: str, shown: dict[str, Token]) -> list[str]:
    def connect() -> socket.socket:
        raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        raw.settimeout(TIMEOUT_S)
        raw.connect(path)
        return raw

    try:
        return try_stream(connect, shown)
    except PermissionError:
        return []
    except (OSError, ValueError) as error:
        return [] if isinstance(error, ConnectionError | FileNotFoundError) else [repr(error)]


def try_path(path: str) -> list[str]:
    opened = []
    for flags, name in ((os.O_RDONLY, "read"), (os.O_WRONLY, "write")):
        with suppress(OSError):
            os.close(os.open(path, flags | os.O_NONBLOCK))
            opened.append(name)
    with suppress(OSError):
        os.listdir(path)
        opened.append("list")
    return opened


def try_process(pid: int) -> list[str]:
    opened = []
    for name in ("fd", "map_files", f"task/{pid}/fd"):
        with suppress(OSError):
            os.listdir(f"/proc/{pid}/{name}")
            opened.append(name)
    for name in ("environ", "mem", "maps", "auxv"):
        with suppress(OSError):
            Path(f"/proc/{pid}/{name}").open("rb").close()
            if name != "maps" or Path(f"/proc/{pid}/{name}").read_bytes():
                opened.append(name)
    return opened


def main() -> None:
    plan = json.load(sys.stdin)
    shown = tokens(plan["secret"])
    if plan["uid"]:
        os.setgroups([])
        os.setresgid(plan["uid"], plan["uid"], plan["uid"])
        os.setresuid(plan["uid"], plan["uid"], plan["uid"])
    found = {}
    for address in plan["ports"]:
        found[f"port {address}"] = try_port(address, shown)
    for path in plan["sockets"]:
        found[f"socket {path}"] = try_socket(path, shown)
    for name in plan["abstract"]:
        found[f"abstract socket {name}"] = try_socket("\0" + name, shown)
    for path in plan["paths"]:
        found[f"path {path}"] = try_path(path)
    for pid in plan["pids"]:
        found[f"process {pid}"] = try_process(pid)
    json.dump({door: opened for door, opened in found.items() if opened}, sys.stdout)


if __name__ == "__main__":
    main()
