"""Names of pages by the tokens that lead to them, and the index that finds the longest known beginning of a text.

What attention has put into a page depends on all tokens before it, so a page is named by a chain:

    key of page 0      = hash(fingerprint of the model, its tokens)
    key of page n + 1  = hash(key of page n, its tokens)

Two texts share pages as far as they are equal, and no further. A last page that is not full has a name as well, made
from as many tokens as it has.
"""

import hashlib
import struct
from collections.abc import Sequence
from typing import Final

from .page_format import KEY_BYTES, PageName

TOKEN_MAX: Final = (1 << 32) - 1


def page_names(tokens: Sequence[int], page_tokens: int, root: bytes) -> list[PageName]:
    """Name the pages of a text in order; the last may have fewer tokens. Raises: ValueError for what is no token."""
    names: list[PageName] = []
    parent = root
    for begin in range(0, len(tokens), page_tokens):
        part = tokens[begin : begin + page_tokens]
        key = chained(parent, part)
        names.append(PageName(key, parent, len(names), len(part)))
        parent = key
    return names


def chained(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Return the key of a page with these tokens behind the page (or the model) with that key."""
    try:
        packed = struct.pack(f"<{len(tokens)}I", *tokens)
    except struct.error as error:
        bad = next((each for each in tokens if not isinstance(each, int) or not 0 <= each <= TOKEN_MAX), None)
        raise ValueError(f"a token is {bad!r}; tokens are whole numbers, 0 to {TOKEN_MAX}") from error
    return hashlib.blake2b(parent + packed, digest_size=KEY_BYTES, person=b"luciola kv page").digest()


class PrefixIndex:
    """Which named pages there are, and in which slot each is. Not for several threads at once."""

    def __init__(self, page_tokens: int, root: bytes) -> None:
        self._page_tokens = page_tokens
        self._root = root
        self._slots: dict[bytes, int] = {}
        self._names: dict[bytes, PageName] = {}
        self._short: dict[bytes, set[bytes]] = {}  # pages that are not full, by their parent

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, key: bytes) -> bool:
        return key in self._slots

    def add(self, name: PageName, slot: int) -> None:
        self._slots[name.key], self._names[name.key] = slot, name
        if name.tokens < self._page_tokens:
            self._short.setdefault(name.parent, set()).add(name.key)

    def remove(self, key: bytes) -> None:
        name = self._names.pop(key)
        del self._slots[key]
        if name.tokens < self._page_tokens:
            siblings = self._short[name.parent]
            siblings.discard(key)
            if not siblings:
                del self._short[name.parent]

    def slot(self, key: bytes) -> int:
        """Return the slot of a page. Raises: KeyError."""
        return self._slots[key]

    def longest(self, tokens: Sequence[int]) -> list[PageName]:
        """Find the longest known beginning of a text: full pages, and at most one that is not, at the end."""
        found: list[PageName] = []
        parent, begin = self._root, 0
        while begin + self._page_tokens <= len(tokens):
            key = chained(parent, tokens[begin : begin + self._page_tokens])
            if key not in self._slots:
                break
            found.append(self._names[key])
            parent, begin = key, begin + self._page_tokens
        tail = self._longest_short(parent, tokens[begin : begin + self._page_tokens])
        return found if tail is None else [*found, tail]

    def _longest_short(self, parent: bytes, tokens: Sequence[int]) -> PageName | None:
        names = [self._names[key] for key in self._short.get(parent, ())]
        by_length = sorted(
            (each for each in names if each.tokens <= len(tokens)), key=lambda each: -each.tokens
        )
        return next((each for each in by_length if chained(parent, tokens[: each.tokens]) == each.key), None)


__all__ = ["PrefixIndex", "chained", "page_names"]
