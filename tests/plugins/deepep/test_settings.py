"""What the environment chooses, and what it may not say."""

import pytest

from luciola.plugins.deepep import settings


def test_nothing_said_means_the_defaults(monkeypatch) -> None:
    for name in ("TRANSPORT", "TIMEOUT_S"):
        monkeypatch.delenv(f"LUCIOLA_DEEPEP_{name}", raising=False)
    assert (settings.transport_name(), settings.timeout_s()) == ("auto", 100.0)


def test_what_is_said_counts(monkeypatch) -> None:
    monkeypatch.setenv("LUCIOLA_DEEPEP_TRANSPORT", "collectives")
    monkeypatch.setenv("LUCIOLA_DEEPEP_TIMEOUT_S", "2.5")
    assert (settings.transport_name(), settings.timeout_s()) == ("collectives", 2.5)


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_a_timeout_is_a_positive_number(monkeypatch, text) -> None:
    monkeypatch.setenv("LUCIOLA_DEEPEP_TIMEOUT_S", text)
    with pytest.raises(ValueError, match="it must be a positive number of seconds"):
        settings.timeout_s()
