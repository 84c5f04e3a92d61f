"""At most two types of the crate have one name: a third is named by its role."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).parents[2] / "core" / "src"
TYPES_OF_ONE_NAME_MAX: Final = 2
# A `type` within an `impl` is an associated type: its trait has named it.
TYPE: Final = re.compile(
    r"^(?:[ \t]*(?:pub(?:\([^)]*\))? )?(?:struct|enum|trait|union)|(?:pub(?:\([^)]*\))? )?type) (\w+)",
    re.MULTILINE,
)


def names_too_frequent(texts: Iterable[str]) -> list[str]:
    counts = Counter(name for text in texts for name in TYPE.findall(text))
    return sorted(name for name, count in counts.items() if count > TYPES_OF_ONE_NAME_MAX)


def texts_of_the_crate() -> list[str]:
    # The generated messages are in a module of their own, and are written with it: `pb::Chain`.
    return [path.read_text() for path in SOURCES.rglob("*.rs") if path.name != "pb.rs"]


def test_at_most_two_types_have_one_name() -> None:
    assert names_too_frequent(texts_of_the_crate()) == []


def test_a_planted_third_type_of_a_name_is_found() -> None:
    texts = texts_of_the_crate()
    assert sum("Outcome" in TYPE.findall(text) for text in texts) == TYPES_OF_ONE_NAME_MAX
    assert names_too_frequent([*texts, "impl Event for Split {\n    type Outcome = ();\n}\n"]) == []
    assert names_too_frequent([*texts, "mod tests {\n    pub(super) enum Outcome {}\n}\n"]) == ["Outcome"]
