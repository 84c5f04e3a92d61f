"""Hugging Face `datasets`, in and out, with the real package."""

import itertools

import pytest
import torch

pytest.importorskip("datasets", reason="needs the extra `ecosystem`")

import datasets

from luciola.errors import AlreadyExists, InvalidArgument
from luciola.plugins.dataset import (
    Loader,
    MapDataset,
    TarWriter,
    from_hugging_face,
    open_records,
    pack_hugging_face,
    to_hugging_face,
)

COUNT = 300


def rows() -> list[dict]:
    return [{"n": n, "text": f"text {n}", "tokens": [n] * (n % 3 + 1)} for n in range(COUNT)]


@pytest.fixture
def saved(tmp_path):
    datasets.Dataset.from_list(rows()).save_to_disk(str(tmp_path / "saved"), num_shards=3)
    return datasets.load_from_disk(str(tmp_path / "saved"))


def n(samples) -> list[int]:
    return [int(sample["n"]) for sample in samples]


def as_row(sample) -> dict:
    return {**sample, "tokens": sample["tokens"].tolist()}


def test_its_files_are_read_where_they_are(saved, tmp_path) -> None:
    dataset = from_hugging_face(saved)
    assert {file.path.rpartition("/")[0] for file in dataset.parts[0].files} == {str(tmp_path / "saved")}
    assert [as_row(sample) for sample in dataset.__getitems__([299, 0, 123])] == [
        rows()[n] for n in (299, 0, 123)
    ]
    batches = Loader(dataset, global_batch_size=30, shuffle="blocks", collate_fn=n)
    assert sorted(itertools.chain(*batches)) == list(range(COUNT))
    dataset.close()


def test_rows_that_were_chosen_are_a_subset(saved) -> None:
    for chosen in (
        saved.select([5, 3, 299]),
        saved.shuffle(seed=1),
        saved.filter(lambda row: row["n"] % 7 == 0),
    ):
        dataset = from_hugging_face(chosen)
        assert n(dataset.__getitems__(range(len(dataset)))) == chosen["n"][:]
        dataset.close()
    parts = saved.train_test_split(0.2, seed=1)
    both = [from_hugging_face(parts[name]) for name in ("train", "test")]
    assert sorted(n(itertools.chain(*(each.__getitems__(range(len(each))) for each in both)))) == list(
        range(COUNT)
    )
    for each in both:
        each.close()


def test_columns_that_were_removed_are_not_read(saved) -> None:
    dataset = from_hugging_face(saved.remove_columns(["text"]))
    assert list(dataset[7]) == ["n", "tokens"]
    dataset.close()


def test_what_the_files_do_not_have_is_refused_with_what_to_do(saved) -> None:
    for wrong, message in (
        (datasets.Dataset.from_list(rows()), "in memory: copy it by pack_hugging_face"),
        (saved.rename_column("n", "m"), "renamed, added or cast: copy it"),
        (saved.rename_columns({"n": "text", "text": "n"}), "copy it by pack_hugging_face"),
        (datasets.DatasetDict({"train": saved}), "choose a split"),
        (saved.select(range(5, 50)), "rows were left out"),
        (datasets.concatenate_datasets([saved, saved]), "repeated or joined: copy it"),
        (_with_a_part_twice(saved), "repeated or joined: copy it"),
        (saved.to_iterable_dataset(), "copy a stream by pack_hugging_face"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            from_hugging_face(wrong)


def _with_a_part_twice(saved):
    """As many rows as the files, of which the first and the last are theirs."""
    parts = (range(50), range(100, 175), range(100, 175), range(200, 300))
    return datasets.concatenate_datasets([saved.select(part) for part in parts])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_is_copied_in_parts(tmp_path, streaming) -> None:
    source = datasets.Dataset.from_list(rows())
    source = source.to_iterable_dataset(num_shards=2) if streaming else source
    report = pack_hugging_face(source, tmp_path / "packed", batch_rows=32, part_bytes=5000)
    assert report.records == COUNT
    assert len(report.files) > 1
    dataset = MapDataset(open_records(tmp_path / "packed"))
    assert [as_row(sample) for sample in dataset.__getitems__(range(COUNT))] == rows()
    assert max(dataset.parts[0].block_sizes()) == 32
    with pytest.raises(AlreadyExists, match=r"PART_00000\.arrow"):
        pack_hugging_face(source, tmp_path / "packed")
    dataset.close()


def test_samples_are_a_stream_of_theirs(tmp_path, saved) -> None:
    dataset = from_hugging_face(saved)
    stream = to_hugging_face(dataset, shards=4)
    assert isinstance(stream, datasets.IterableDataset)
    assert stream.num_shards == 4
    assert [{**row, "tokens": list(row["tokens"])} for row in stream] == rows()
    doubled = stream.map(lambda row: {"n": row["n"] * 2}).take(3)
    assert [row["n"] for row in doubled] == [0, 2, 4]
    workers = torch.utils.data.DataLoader(stream.select_columns(["n"]), batch_size=10, num_workers=2)
    assert sorted(itertools.chain(*(batch["n"].tolist() for batch in workers))) == list(range(COUNT))
    dataset.close()


def test_bytes_of_tars_are_bytes_in_the_stream(tmp_path) -> None:
    with TarWriter(tmp_path / "a.tar") as writer:
        writer.write({"__key__": "1", "jpg": b"\xff\xd8", "cls": b"7"})
    dataset = MapDataset(open_records(tmp_path))
    assert list(to_hugging_face(dataset)) == [{"__key__": "1", "jpg": b"\xff\xd8", "cls": b"7"}]
    dataset.close()


def test_trainer_takes_samples_and_stream(tmp_path, saved) -> None:
    """Both as `train_dataset`: each sample once."""
    transformers = pytest.importorskip("transformers")

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.seen: list[int] = []

        def forward(self, n, **_):
            self.seen += n.tolist()
            return {"loss": (self.weight * n.float().mean() * 1e-6).sum()}

    def collate(samples):
        return {"n": torch.tensor(n(samples))}

    options = {"report_to": [], "per_device_train_batch_size": 10, "use_cpu": True, "save_strategy": "no"}
    dataset = from_hugging_face(saved)
    for source, ends in (
        (dataset, {"num_train_epochs": 1}),
        (to_hugging_face(dataset), {"max_steps": COUNT // 10}),
    ):
        model = Model()
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "out"),
            remove_unused_columns=False,
            disable_tqdm=True,
            **options,
            **ends,
        )
        transformers.Trainer(model, arguments, train_dataset=source, data_collator=collate).train()
        assert sorted(model.seen) == list(range(COUNT))
    dataset.close()
