import pytest

from .world import OPENED, World


@pytest.fixture(autouse=True)
def _close_worlds():
    yield
    while OPENED:
        OPENED.pop().close()


@pytest.fixture
def world():
    return World()
