"""What `luciola up` shows while it runs: a live table in a terminal, a line per change elsewhere."""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from .supervisor import Supervisor

STYLES = {
    "running": "green",
    "starting": "yellow",
    "restarting": "red",
    "refused": "red",
    "stopping": "yellow",
    "stopped": "dim",
}


class LiveTable:
    """Draws a supervisor whenever it changes."""

    def __init__(self, *, enabled: bool) -> None:
        self._console = Console()
        self._live: Live | None = None
        if enabled and self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
        self._lines = enabled and self._live is None
        self._shown: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, supervisor: "Supervisor") -> None:
        """Draw the state that `supervisor` is in now."""
        if self._live is not None:
            self._live.update(self._table(supervisor), refresh=True)
        elif self._lines:
            self._print_changes(supervisor)

    def _table(self, supervisor: "Supervisor") -> Table:
        title = f"Luciola {supervisor.shape.cluster.cluster_id}: {supervisor.phase}"
        caption = f"{supervisor.data.root}    Ctrl-C stops"
        if supervisor.mountpoint is not None:
            caption = f"mounted on {supervisor.mountpoint}    {caption}"
        # Paths may contain what rich takes for markup.
        table = Table(
            title=escape(title), caption=escape(caption), title_justify="left", caption_justify="left"
        )
        for column in ("service", "id", "pid", "state", "restarts"):
            table.add_column(column, justify="right" if column in ("pid", "restarts") else "left")
        for child in supervisor.children:
            table.add_row(
                child.service.kind,
                escape(child.service.id),
                str(child.pid or "-"),
                f"[{STYLES[child.state]}]{child.state}[/]",
                str(child.restarts),
            )
        return table

    def _print_changes(self, supervisor: "Supervisor") -> None:
        states = {child.service.name: f"{child.state} {child.pid or ''}" for child in supervisor.children}
        states["cluster"] = supervisor.phase
        for name, state in states.items():
            if self._shown.get(name) != state:
                line = f"{time.strftime('%H:%M:%S')} {name}: {state}".rstrip()
                self._console.print(line, highlight=False, markup=False)
        self._shown = states


__all__ = ["LiveTable"]
