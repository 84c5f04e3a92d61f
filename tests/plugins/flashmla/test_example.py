"""The example as a user runs it, with a short prompt, its pages on a cluster."""

import subprocess
from pathlib import Path

import pytest

from cluster import LocalCluster

EXAMPLE = Path(__file__).parents[3] / "examples" / "continue_conversation.py"


@pytest.mark.slow
def test_a_conversation_continues_after_a_restart(shared_cluster: LocalCluster, warm_python: str):
    location = f"luciola://{shared_cluster.data}!/kv-example/chat.pages"
    command = [warm_python, str(EXAMPLE), location, "--tokens=70"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal in every bit of every logit" in done.stdout
    # 70 tokens and 23 of the answer: two full pages would be 128, so the last page is one that is not full.
    assert "93 tokens found" in done.stdout
