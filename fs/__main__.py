"""The `luciola` command, and `python -m luciola`.

Ctrl-C while Python still loads modules ends the process at once and without a word: nothing was begun.
"""

import os
import signal
from typing import NoReturn

INTERRUPTED = 130  # what a shell shows of a program that SIGINT ended


def main() -> NoReturn:
    """Load the command line and run it."""
    # A shell starts what runs in its background with SIGINT ignored, and that stays so.
    waits = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if waits:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    from .cli import main as run

    if waits:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
