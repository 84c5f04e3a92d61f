"""What deploy/prometheus names is in docs/metrics.md, which tests/integration/test_metrics.py holds to be true."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "luciola.rules.yml"
NAME = re.compile(r"\bluciola_\w+")
ROW = re.compile(r"^\| `(luciola_\w+)(?:\{[\w, ]+\})?` \| (histogram)?", re.MULTILINE)


def known() -> set[str]:
    """Names of samples."""
    rows = ROW.findall((ROOT / "docs" / "metrics.md").read_text())
    plain = {name for name, kind in rows if not kind}
    return plain | {f"{name}_{part}" for name, kind in rows if kind for part in ("bucket", "sum", "count")}


def unknown(text: str) -> set[str]:
    expressions = re.findall(r"^ +expr: (.+?)\n +(?:for|labels):", text, re.MULTILINE | re.DOTALL)
    assert len(expressions) == text.count("- alert:"), "every alert has an expression"
    return {name for expression in expressions for name in NAME.findall(expression)} - known()


def test_alerts_name_metrics_that_there_are() -> None:
    assert unknown(RULES.read_text()) == set()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("luciola_meta_primary", "luciola_meta_primaries"),
        ("luciola_log_append_duration_seconds_sum", "luciola_log_append_duration_seconds"),
    ],
)
def test_name_that_there_is_not_is_found(name: str, wrong: str) -> None:
    assert unknown(re.sub(rf"\b{name}\b", wrong, RULES.read_text())) == {wrong}


def test_alerts_have_distinct_names() -> None:
    names = re.findall(r"- alert: (\w+)", RULES.read_text())
    assert len(names) == len(set(names)) >= 10
