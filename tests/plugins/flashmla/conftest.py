"""Tests of operators run on the device that was chosen for them; a page file's are about host memory."""

import pytest

HOST = (
    "test_page",
    "test_prefix",
    "test_example",
    "test_machine",
    "test_interface",
    "test_command",
    "test_capture",
)


@pytest.fixture(autouse=True)
def _on_the_chosen_device(request: pytest.FixtureRequest) -> None:
    """Tensors are made there."""
    if not request.node.path.name.startswith(HOST):
        request.getfixturevalue("kernel_device")
