"""What `luciola plugins` says of a plugin with kernels: the layer that runs, its gate, and when a GPU last ran it.

`make gpu` calls `record_run` when everything of a plugin has passed on a card. The record is a JSON file of dates by
card and plugin in $XDG_STATE_HOME/luciola (~/.local/state/luciola).
"""

import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import torch

from . import layers

NEVER: Final = "never"


def describe(plugin: str) -> dict[str, str]:
    """Return the machine's state, the layer of a call, the gate of the Gluon kernels, the last run on this card."""
    sample = torch.empty(0, device="cuda" if torch.cuda.is_available() else "cpu")
    release = layers.triton_release()
    if not release:
        gate = "not there: no Triton"
    elif layers.is_gated():
        gate = f"sm_90a machine code, passed with Triton {release}"
    else:
        gate = f"sm_90a machine code, not tried with Triton {release}: Triton's layer by default"
    return {
        "state": layers.state(),
        "layer": layers.layer_for(sample),
        "gate": gate,
        "run_on_this_card": last_run(plugin),
    }


def record_run(plugin: str) -> None:
    """Record that all of a plugin's GPU tests passed on this process's CUDA device today.

    Raises: RuntimeError without a CUDA device, OSError if the file cannot be written.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("there is no CUDA device here, so nothing ran on one")
    path, runs = _path(), _runs()
    runs.setdefault(torch.cuda.get_device_name(), {})[plugin] = datetime.now(UTC).date().isoformat()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(runs, file, indent=2)
    os.replace(file.name, path)


def last_run(plugin: str) -> str:
    """Return the date of the last `record_run` on a card of this kind, "never", or that there is no card."""
    if not torch.cuda.is_available():
        return "no card"
    return _runs().get(torch.cuda.get_device_name(), {}).get(plugin, NEVER)


def _runs() -> dict[str, dict[str, str]]:
    """Dates by card and plugin; a file that is not there or not whole is no record."""
    try:
        runs = json.loads(_path().read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(runs, dict):
        return {}
    return {card: dates for card, dates in runs.items() if isinstance(dates, dict)}


def _path() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "luciola" / "gpu-runs.json"


__all__ = ["NEVER", "describe", "last_run", "record_run"]
