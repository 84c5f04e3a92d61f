"""How a mount's process hears that it should end."""

import os
import signal
import threading

import pytest

from luciola.fuse import lifecycle


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_arrives_while_the_main_thread_sleeps(number):
    # The main thread waits for a lock, and another thread gets the signal: Python's own handlers do not run then.
    heard = threading.Event()
    got = []

    def listen() -> None:
        got.append(os.read(asked, 1))
        heard.set()

    with lifecycle._signals() as asked:
        listener = threading.Thread(target=listen)
        listener.start()
        signal.pthread_kill(listener.ident, number)
        assert heard.wait(60), "a signal was lost"
        listener.join()
    os.close(asked)
    assert got == [bytes([number])]


def test_handlers_are_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with lifecycle._signals() as asked:
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    assert os.read(asked, 1) == b"", "who still listens hears that it is over"
    os.close(asked)
