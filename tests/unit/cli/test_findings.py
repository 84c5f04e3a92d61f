"""Codes of what may be wrong: each has a remedy, and stands in the documentation."""

import re
from pathlib import Path

from luciola.cli.findings import CODES, Finding, Severity, in_order, worst

DOCS = Path(__file__).parents[3] / "docs" / "operations.md"
ROW = re.compile(r"^\| `([A-Z_]+)` \| (warning|error) \| (.+) \| (.+) \|$", re.MULTILINE)


def test_every_code_is_documented_with_its_remedy() -> None:
    section = DOCS.read_text().partition("### Health codes\n")[2].partition("\n## ")[0]
    documented = {code: tuple(rest) for code, *rest in ROW.findall(section)}
    assert documented == {
        name: (code.severity.name.lower(), code.meaning, code.remedy) for name, code in CODES.items()
    }


def test_no_code_lacks_a_remedy() -> None:
    for name, code in CODES.items():
        assert re.fullmatch(r"[A-Z]+(_[A-Z]+)+", name)
        assert code.remedy, name
        assert code.severity > Severity.OK, name


def test_worst_finding_comes_first_and_is_the_result() -> None:
    warning, error = Finding("NODE_DOWN", "a", "node 1"), Finding("DISK_FULL", "b", "node 2")
    assert in_order([warning, error]) == [error, warning]
    assert (worst([warning, error]), worst([warning]), worst([])) == (2, 1, 0)


def test_remedy_of_a_finding_may_name_numbers() -> None:
    assert Finding("NODE_DISABLED", "node 7 is disabled", "node 7").line.endswith("; luciola node enable N")
    named = Finding("NODE_DISABLED", "node 7 is disabled", "node 7", "luciola node enable 7")
    assert named.as_found() == {
        "code": "NODE_DISABLED",
        "severity": "warning",
        "what": "node 7 is disabled",
        "where": "node 7",
        "remedy": "luciola node enable 7",
    }
