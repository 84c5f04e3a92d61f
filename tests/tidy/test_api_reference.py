"""What `docs/build.py` makes of docstrings before they are Markdown."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "docs" / "build.py"
SPEC = spec_from_file_location("docs_build", PATH)
assert SPEC is not None
assert SPEC.loader is not None
build = module_from_spec(SPEC)
SPEC.loader.exec_module(build)


@pytest.mark.parametrize(
    ("docstring", "shown"),
    [
        ("A sentence\nof two lines.", "A sentence\nof two lines."),
        (
            "Fields:\n  a       one\n  b, c.d  two\n\nAfter.",
            "Fields:\n\n- `a`: one\n- `b, c.d`: two\n\n<!-- -->\n\nAfter.",
        ),
        ("a  one\nthen text", "\n- `a`: one\n\nthen text"),
        ("Example:\n\n    x = 1\n    a   b", "Example:\n\n    x = 1\n    a   b"),
    ],
    ids=["text", "table", "table before text", "code"],
)
def test_aligned_tables_are_lists_and_code_stays(docstring: str, shown: str) -> None:
    assert build.tables_as_lists(docstring) == shown
