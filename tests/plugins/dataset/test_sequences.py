"""Sequences packed into rows: nothing lost, borders kept, labels within a document."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luciola.plugins.dataset import Loader, MapDataset, PackSequences, TokenWriter, open_records
from luciola.plugins.dataset.sequences import IGNORED


@given(st.lists(st.integers(0, 25), min_size=1, max_size=12), st.integers(1, 10))
def test_every_token_is_in_one_row_in_the_order_of_its_sequence(lengths: list[int], length: int) -> None:
    samples = [torch.arange(count) + 100 * (number + 1) for number, count in enumerate(lengths)]
    packed = PackSequences(length, padding=7)(samples)
    found: dict[tuple[int, int], int] = {}
    for document, position, token in zip(
        *(each.flatten().tolist() for each in (packed.documents, packed.positions, packed.tokens)),
        strict=True,
    ):
        if document:
            assert (document, position) not in found
            found[document, position] = token
        else:
            assert token == 7
    assert found == {
        (number + 1, place): 100 * (number + 1) + place
        for number, count in enumerate(lengths)
        for place in range(count)
    }
    full = sum(lengths) / length
    assert packed.tokens.shape[1] == length
    assert packed.tokens.shape[0] <= max(1, 11 / 9 * 2 * full + 1)
    for row in range(len(packed.tokens)):
        for place in range(length):
            document, position = (int(each[row, place]) for each in (packed.documents, packed.positions))
            is_followed = (
                document > 0
                and place + 1 < length
                and int(packed.documents[row, place + 1]) == document
                and int(packed.positions[row, place + 1]) == position + 1
            )
            wanted = found[document, position + 1] if is_followed else IGNORED
            assert int(packed.labels[row, place]) == wanted


def test_a_loader_packs_documents_of_token_files(tmp_path) -> None:
    with TokenWriter(tmp_path / "train", dtype="uint16") as writer:
        for count in (3, 5, 2, 6):
            writer.write([count * 10 + place for place in range(count)])
    dataset = MapDataset(open_records(tmp_path / "train.idx"))
    (batch,) = Loader(dataset, global_batch_size=4, shuffle=False, collate_fn=PackSequences(8, rows=3))
    assert batch.tokens.tolist() == [
        [60, 61, 62, 63, 64, 65, 20, 21],
        [50, 51, 52, 53, 54, 30, 31, 32],
        [0] * 8,
    ]
    assert batch.documents.tolist()[0] == [4] * 6 + [3] * 2
    assert batch.labels.tolist()[1] == [51, 52, 53, 54, IGNORED, 31, 32, IGNORED]
    dataset.close()


def test_what_cannot_be_packed_says_why() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0 of 8"):
        PackSequences(8, rows=0)
    with pytest.raises(ValueError, match=r"not torch\.float32 in 1"):
        PackSequences(8)([torch.zeros(3)])
    with pytest.raises(ValueError, match="take 2 rows of 8 tokens, there are 1"):
        PackSequences(8, rows=1)([torch.arange(5), torch.arange(5)])
