"""Sequences of several lengths in rows of one length, with the borders of documents.

    dataset = MapDataset(open_records("lu:/text/train.idx"))             # a sample is a sequence of tokens
    loader = Loader(dataset, global_batch_size=64, collate_fn=PackSequences(2048))
    for batch in loader:
        loss = model(batch.tokens, positions=batch.positions, documents=batch.documents, labels=batch.labels)

Q1  Every token of the batch is in one row, once, behind the one before it of its sequence.
Q2  A sequence that is longer than a row is cut into pieces of that length; positions continue.
Q3  Rows depend on the batch alone, so order and states of a loader are the same as without packing.

First-fit decreasing: the longest piece first, into the first row that has room (Johnson 1973: at most 11/9 of the least
number of rows, and one).
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

IGNORED: Final = -100  # the label that torch's cross entropy leaves out


class PackedSequences(NamedTuple):
    """Rows of tokens, each an integer tensor of shape (rows, length).

    `documents`: the sequence of the batch that a token is of, from 1 on; 0 is padding. `positions`: of the token in its
    sequence. `labels`: the next token of the same sequence in the same row, IGNORED where there is none.
    """

    tokens: Tensor
    documents: Tensor
    positions: Tensor
    labels: Tensor


class _Piece(NamedTuple):
    document: int
    start: int
    tokens: Tensor


class PackSequences:
    """A collate function: the sequences of a batch in rows of `length` tokens, filled up with `padding`.

    `rows`: always so many rows, for programs that are compiled for one shape; without it as few as are needed.
    Raises: ValueError for samples that are not tokens in one dimension, and for a batch that `rows` have no room for.
    """

    def __init__(self, length: int, *, rows: int | None = None, padding: int = 0) -> None:
        if length < 1 or (rows is not None and rows < 1):
            raise ValueError(f"rows and their length are at least 1, not {rows} of {length}")
        self.length, self.rows, self.padding = length, rows, padding

    def __call__(self, samples: Sequence[Any]) -> PackedSequences:
        rows = self._fitted(self._pieces(samples))
        if self.rows is not None and len(rows) > self.rows:
            raise ValueError(
                f"the sequences of this batch take {len(rows)} rows of {self.length} tokens, there are {self.rows}: "
                "make rows= larger or the batch smaller"
            )
        shape = (self.rows or max(1, len(rows)), self.length)
        tokens = torch.full(shape, self.padding, dtype=torch.int64)
        documents, positions = (torch.zeros(shape, dtype=torch.int64) for _ in range(2))
        for number, row in enumerate(rows):
            at = 0
            for piece in row:
                end = at + len(piece.tokens)
                tokens[number, at:end] = piece.tokens
                documents[number, at:end] = piece.document
                positions[number, at:end] = torch.arange(piece.start, piece.start + end - at)
                at = end
        labels = torch.full(shape, IGNORED, dtype=torch.int64)
        follows = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] > 0)
        follows &= positions[:, 1:] == positions[:, :-1] + 1
        labels[:, :-1][follows] = tokens[:, 1:][follows]
        return PackedSequences(tokens, documents, positions, labels)

    def _pieces(self, samples: Sequence[Any]) -> list[_Piece]:
        pieces = []
        for document, sample in enumerate(samples, 1):
            tokens = torch.as_tensor(sample)
            if tokens.ndim != 1 or tokens.is_floating_point():
                raise ValueError(
                    f"a sequence is integers in one dimension, not {tokens.dtype} in {tokens.ndim}: see decode="
                )
            tokens = tokens.to(torch.int64)
            pieces += [
                _Piece(document, start, tokens[start : start + self.length])
                for start in range(0, len(tokens), self.length)
            ]
        return pieces

    def _fitted(self, pieces: list[_Piece]) -> list[list[_Piece]]:
        rows: list[list[_Piece]] = []
        room: list[int] = []
        for piece in sorted(pieces, key=lambda each: -len(each.tokens)):
            size = len(piece.tokens)
            place = next((number for number, left in enumerate(room) if left >= size), len(rows))
            if place == len(rows):
                rows.append([])
                room.append(self.length)
            rows[place].append(piece)
            room[place] -= size
        return rows


__all__ = ["IGNORED", "PackSequences", "PackedSequences"]
