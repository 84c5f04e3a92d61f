"""The cable between the laboratory's two ports: what can go wrong with it, and mending it."""

import subprocess
import time
from pathlib import Path

INTERFACES = {"rxe0": "ve0", "rxe1": "ve1"}
TABLES = {"ve0": "100", "ve1": "101"}
ADDRESSES = {"ve0": "10.77.0.1", "ve1": "10.77.0.2"}
# An emulated machine on a busy one is slow; nothing waits so long unless it fails.
PATIENCE_S = 180


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def wait_for(what: str, condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {PATIENCE_S} s"
        time.sleep(0.05)


def cut(interface: str) -> None:
    """The link goes down."""
    run("ip", "link", "set", interface, "down")


def disturb(interface: str, *how: str) -> None:
    """netem: `loss 1%`, `delay 5ms reorder 25%`, …"""
    run("tc", "qdisc", "replace", "dev", interface, "root", "netem", *how)


def mend() -> None:
    """Both ends up, nothing lost, addresses and routes as at the start."""
    for interface in TABLES:
        subprocess.run(["tc", "qdisc", "del", "dev", interface, "root"], capture_output=True, check=False)
        run("ip", "link", "set", interface, "up")
    # No end has a carrier before the other is up.
    for device, interface in INTERFACES.items():
        # A link that goes down takes its routes and neighbours with it.
        run("ip", "route", "replace", "10.77.0.0/24", "dev", interface, "table", TABLES[interface])
        mac = Path(f"/sys/class/net/{interface}/address").read_text().strip()
        neighbour = (ADDRESSES[interface], "lladdr", mac, "dev", interface, "nud", "permanent")
        run("ip", "neigh", "replace", *neighbour)
        wait_for(f"{device} became usable", lambda device=device: is_usable(device))


def is_usable(device: str) -> bool:
    port = Path("/sys/class/infiniband") / device / "ports/1"
    state = (port / "state").read_text()
    return "ACTIVE" in state and not (port / "gids/1").read_text().strip().endswith("0000:0000:0000")
