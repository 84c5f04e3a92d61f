"""What a metadata service is made of; `bootstrap.build` puts it together."""

from dataclasses import dataclass

from ..clock import Clock
from ..kv import Engine
from .context import SharedState
from .dump import Dumps
from .inode_counter import InodeCounter
from .lengths import Lengths
from .load import Load
from .quarantine import Quarantine
from .requests import Requests
from .sessions import Holds, Writers
from .storage import StorageControl
from .truncation import Truncations


@dataclass(frozen=True, slots=True)
class Dependencies:
    """The parts of one service over one store."""

    engine: Engine
    clock: Clock
    shared: SharedState
    control: StorageControl
    lengths: Lengths
    truncations: Truncations
    writers: Writers
    holds: Holds
    requests: Requests
    inode_counter: InodeCounter
    quarantine: Quarantine
    dumps: Dumps
    load: Load
    incarnation: int


__all__ = ["Dependencies"]
