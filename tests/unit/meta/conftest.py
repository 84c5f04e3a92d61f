import pytest

from .world import World


@pytest.fixture
def world():
    made = World()
    yield made
    made.close()
