"""What the environment chooses, and what it may not say."""

import pytest

from luciola.plugins.deepep import settings


def test_nothing_said_means_the_defaults(monkeypatch) -> None:
    for name in ("TRANSPORT", "TIMEOUT_S", "RANKS_PER_NODE"):
        monkeypatch.delenv(f"LUCIOLA_DEEPEP_{name}", raising=False)
    assert (settings.transport_name(), settings.timeout_s(), settings.ranks_per_node()) == (
        "auto",
        100.0,
        None,
    )


def test_what_is_said_counts(monkeypatch) -> None:
    monkeypatch.setenv("LUCIOLA_DEEPEP_TRANSPORT", "messages")
    monkeypatch.setenv("LUCIOLA_DEEPEP_TIMEOUT_S", "2.5")
    monkeypatch.setenv("LUCIOLA_DEEPEP_RANKS_PER_NODE", "4")
    assert (settings.transport_name(), settings.timeout_s(), settings.ranks_per_node()) == (
        "messages",
        2.5,
        4,
    )


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_a_timeout_is_a_positive_number(monkeypatch, text) -> None:
    monkeypatch.setenv("LUCIOLA_DEEPEP_TIMEOUT_S", text)
    with pytest.raises(ValueError, match="it must be a positive number of seconds"):
        settings.timeout_s()


@pytest.mark.parametrize("text", ["two", "0", "-4"])
def test_a_node_has_ranks(monkeypatch, text) -> None:
    monkeypatch.setenv("LUCIOLA_DEEPEP_RANKS_PER_NODE", text)
    with pytest.raises(ValueError, match="it must be a positive number"):
        settings.ranks_per_node()
