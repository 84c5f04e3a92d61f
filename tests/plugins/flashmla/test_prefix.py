"""Chained names and the index over them, against a plain search."""

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luciola.plugins.flashmla.prefix import PrefixIndex, page_names

ROOT = bytes(32)
PAGE = 4
texts = st.lists(st.integers(0, 2), max_size=15)


def test_keys_are_chained_as_drawn():
    first, second = page_names([1, 2, 3, 4, 5], PAGE, ROOT)

    def digest(parent, *tokens):
        packed = parent + struct.pack(f"<{len(tokens)}I", *tokens)
        return hashlib.blake2b(packed, digest_size=32, person=b"luciola kv page").digest()

    assert first.key == digest(ROOT, 1, 2, 3, 4)
    assert second.key == digest(first.key, 5)
    assert (first.parent, second.parent) == (ROOT, first.key)
    assert [(each.depth, each.tokens) for each in (first, second)] == [(0, 4), (1, 1)]


@given(known=st.lists(texts, max_size=5), text=texts)
def test_longest_beginning_is_that_of_a_plain_search(known, text):
    index = PrefixIndex(PAGE, ROOT)
    there = set()  # the beginnings whose pages are there, as tuples
    for other in known:
        for name in page_names(other, PAGE, ROOT):
            index.add(name, 0)
            there.add(tuple(other[: name.depth * PAGE + name.tokens]))
    full = 0
    while full + PAGE <= len(text) and tuple(text[: full + PAGE]) in there:
        full += PAGE
    tails = [end for end in range(full + 1, min(full + PAGE, len(text) + 1)) if tuple(text[:end]) in there]
    found = index.longest(text)
    assert sum(name.tokens for name in found) == max([full, *tails])
    assert [name.depth for name in found] == list(range(len(found)))


@given(known=st.lists(texts, max_size=5), gone=st.integers(0, 30), text=texts)
def test_what_is_removed_is_not_found(known, gone, text):
    index, rest = PrefixIndex(PAGE, ROOT), PrefixIndex(PAGE, ROOT)
    names = list({name.key: name for other in known for name in page_names(other, PAGE, ROOT)}.values())
    for place, name in enumerate(names):
        index.add(name, place)
        if place != gone:
            rest.add(name, place)
    if gone < len(names):
        index.remove(names[gone].key)
    assert len(index) == len(rest)
    assert index.longest(text) == rest.longest(text)


@pytest.mark.parametrize("bad", [-1, 1 << 32, 1.5, "x"])
def test_what_is_no_token_is_refused(bad):
    with pytest.raises(ValueError, match=r"a token is .*; tokens are whole numbers"):
        page_names([1, bad], PAGE, ROOT)
