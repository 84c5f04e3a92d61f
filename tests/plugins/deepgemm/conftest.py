"""All tests of kernels run on the device that was chosen for them."""

import pytest


@pytest.fixture(autouse=True)
def _on_the_chosen_device(kernel_device: str) -> None:
    """Tensors are made there."""
