"""Tar shards: names as WebDataset has them, every kind of tar, the index beside it, and tars that are damaged."""

import io
import os
import random
import tarfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luciola.client import LocalFileSystem
from luciola.errors import CorruptData, InvalidArgument
from luciola.plugins.dataset import MapDataset, TarWriter, collate, open_records
from luciola.plugins.dataset.reader import BatchReader
from luciola.plugins.dataset.tar import SUFFIX, key_and_part

Sample = dict[str, str | bytes]


def read_all(path) -> list[Sample]:
    records = open_records(path)
    reader = BatchReader([records])
    try:
        numbers = np.arange(len(records))
        samples = records.samples(numbers, reader.read(numbers).arrays())
        return [
            {part: value if part == "__key__" else value.tobytes() for part, value in sample.items()}
            for sample in samples
        ]
    finally:
        reader.close()


def make_tar(path, members: dict[str, bytes], format_: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=format_) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


MEMBERS = {
    "a/0001.jpg": b"first picture",
    "a/0001.CLS": b"7",
    "a/0002.seg.png": b"",
    "a/0002.json": b"{}" * 700,
    "0003.txt": b"x" * 512,
}
SAMPLES: list[Sample] = [
    {"__key__": "a/0001", "jpg": b"first picture", "cls": b"7"},
    {"__key__": "a/0002", "seg.png": b"", "json": b"{}" * 700},
    {"__key__": "0003", "txt": b"x" * 512},
]


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_other_writers_are_read(tmp_path, format_: int) -> None:
    long = "d" * 60 + "/" + "ü" * 60 + ".jpg"
    members = MEMBERS if format_ == tarfile.USTAR_FORMAT else {**MEMBERS, long: b"long"}
    make_tar(tmp_path / "a.tar", members, format_)
    samples = read_all(tmp_path / "a.tar")
    assert samples[:3] == SAMPLES
    assert samples[3:] == ([] if members is MEMBERS else [{"__key__": long[:-4], "jpg": b"long"}])
    assert read_all(tmp_path / "a.tar") == samples, "by the index"


def test_what_is_no_sample_is_passed_over(tmp_path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (
            ("a", tarfile.DIRTYPE),
            ("a/link.jpg", tarfile.SYMTYPE),
            ("a/hard.jpg", tarfile.LNKTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a/0001.jpg"
            tar.addfile(info)
        for name in ("__meta__/shard.json", "a/0001.jpg", "a/README", "a/.hidden.jpg", "a/0001.cls"):
            info = tarfile.TarInfo(name)
            info.size = 5
            tar.addfile(info, io.BytesIO(b"bytes"))
    assert read_all(tmp_path / "a.tar") == [{"__key__": "a/0001", "jpg": b"bytes", "cls": b"bytes"}]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("0001.jpg", ("0001", "jpg")),
        ("a.b/c/0001.seg.PNG", ("a.b/c/0001", "seg.png")),
        ("./0001.jpg", ("./0001", "jpg")),
        ("0001", None),
        ("a.b/0001", None),
        (".hidden.jpg", None),
        ("__index__", None),
        ("__meta__/x.json", None),
        ("new\nline.txt", ("new\nline", "txt")),
    ],
)
def test_names(name: str, wanted) -> None:
    assert key_and_part(name) == wanted


@given(
    samples=st.lists(
        st.dictionaries(st.sampled_from(["jpg", "cls", "seg.png"]), st.binary(max_size=1200), min_size=1),
        max_size=12,
    )
)
@settings(deadline=None, max_examples=40)
def test_what_is_written_is_read(tmp_path_factory, samples) -> None:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    named = [{"__key__": f"k/{number:03}", **sample} for number, sample in enumerate(samples)]
    with TarWriter(path) as writer:
        for sample in named:
            writer.write(sample)
    assert read_all(path) == named
    with tarfile.open(path) as tar:
        there = {info.name: tar.extractfile(info).read() for info in tar}
    assert there == {
        f"{each['__key__']}.{part}": data for each in named for part, data in each.items() if part[0] != "_"
    }


def test_samples_are_tensors_and_several_shards_are_one_data_set(tmp_path) -> None:
    make_tar(tmp_path / "0.tar", {"1.x": b"\x01\x02", "2.x": b"\x03\x04"})
    make_tar(tmp_path / "1.tar", {"3.x": b"\x05\x06"})
    dataset = MapDataset(open_records(tmp_path))
    assert len(dataset) == 3
    batch = collate(dataset.__getitems__([2, 0]))
    assert batch["__key__"] == ["3", "1"]
    assert batch["x"].tolist() == [[5, 6], [1, 2]]
    import pickle

    again = pickle.loads(pickle.dumps(dataset))
    assert again[1]["x"].tolist() == [3, 4]
    again.close()
    dataset.close()


# ---- the index


class CountingFileSystem(LocalFileSystem):
    """Remembers what was opened."""

    def __init__(self) -> None:
        self.read_bytes = 0

    def open(self, path, mode="r", *arguments, **named):
        file = super().open(path, mode, *arguments, **named)
        counter, pread = self, file.pread

        class Counted(type(file)):
            def pread(self, size: int, offset: int) -> bytes:
                counter.read_bytes += size
                return pread(size, offset)

        file.__class__ = Counted
        return file


def test_index_is_made_once_and_again_when_the_tar_changes(tmp_path) -> None:
    path = tmp_path / "a.tar"
    make_tar(path, {f"{number}.x": bytes(5000) for number in range(100)})
    counting = CountingFileSystem()
    assert len(open_records(path, file_system=counting)) == 100
    assert counting.read_bytes > path.stat().st_size
    counting.read_bytes = 0
    assert len(open_records(path, file_system=counting)) == 100
    assert counting.read_bytes < 5000
    first = (tmp_path / f"a.tar{SUFFIX}").read_bytes()
    make_tar(path, {f"{number}.y": bytes(5000) for number in range(100)})
    os.utime(path, ns=(1, 1))  # as long, and older: another file all the same
    assert read_all(path)[99] == {"__key__": "99", "y": bytes(5000)}
    assert (tmp_path / f"a.tar{SUFFIX}").read_bytes() != first


def test_tar_that_was_replaced_is_refused(tmp_path) -> None:
    path = tmp_path / "a.tar"
    make_tar(path, MEMBERS)
    records = open_records(path)
    path.unlink()
    make_tar(path, MEMBERS)
    with pytest.raises(CorruptData, match="was replaced"):
        records.read_index(records.files[0])


def test_damaged_or_forged_index_is_made_again(tmp_path) -> None:
    make_tar(tmp_path / "a.tar", MEMBERS)
    assert read_all(tmp_path / "a.tar") == SAMPLES
    index = tmp_path / f"a.tar{SUFFIX}"
    good = index.read_bytes()
    random_source = random.Random(3)
    for turn in range(100):
        data = bytearray(good)
        data[random_source.randrange(len(data))] ^= random_source.randrange(1, 256)
        if turn % 3 == 0:
            del data[random_source.randrange(len(data)) :]
        if turn % 2 and len(data) > 12:
            data[8:12] = zlib.crc32(data[12:]).to_bytes(4, "little")  # by an author who knew the format
        index.write_bytes(data)
        try:
            samples = read_all(tmp_path / "a.tar")
        except CorruptData as error:
            assert str(tmp_path / "a.tar") in str(error)
            continue
        if not turn % 2:
            assert samples == SAMPLES
            assert index.read_bytes() == good


def test_without_a_place_for_it_the_index_is_kept_in_memory(tmp_path) -> None:
    class ReadOnly(LocalFileSystem):
        def open(self, path, mode="r", *arguments, **named):
            if mode != "rb":
                raise PermissionError(13, "no", path)
            return super().open(path, mode, *arguments, **named)

    make_tar(tmp_path / "a.tar", MEMBERS)
    records = open_records(tmp_path / "a.tar", file_system=ReadOnly())
    reader = BatchReader([records])
    (sample,) = records.samples(np.array([2]), reader.read([2]).arrays())
    assert sample["txt"].tobytes() == b"x" * 512
    reader.close()
    assert os.listdir(tmp_path) == ["a.tar"]


# ---- damage


def test_a_flipped_bit_names_file_and_sample(tmp_path) -> None:
    path = tmp_path / "a.tar"
    make_tar(path, MEMBERS)
    before = path.stat()
    read_all(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"{}{}") + 900] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(
        CorruptData, match=r"sample 1 \('a/0002.seg.png' and what follows\) does not match"
    ) as caught:
        read_all(path)
    assert caught.value.filename == str(path)


def test_other_or_incomplete_files_are_refused(tmp_path) -> None:
    path = tmp_path / "a.tar"
    make_tar(path, MEMBERS)
    whole = path.read_bytes()
    end = -(-len(whole.rstrip(b"\0")) // 512) * 512
    joined = whole + whole
    cases = [
        (b"", "not a tar: 0 bytes"),
        (b"\x1f\x8b" + bytes(1000) + b"x" * 600, "compressed tars cannot be read at random"),
        (whole[:end], "the tar was cut off"),
        (whole[:1500], "the tar was cut off"),
        (joined, "several tars joined"),
        (
            whole[:512] + b"y" + whole[513:1024] + b"y" * 512 + whole[1536:],
            "the tar is damaged: invalid header at byte 1024",
        ),
    ]
    for data, words in cases:
        path.write_bytes(data)
        with pytest.raises(CorruptData, match=words) as caught:
            open_records(path)
        assert caught.value.filename == str(path)
    make_tar(path, {})
    assert read_all(path) == []
    with tarfile.open(path, "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("1.x"))
    with pytest.raises(CorruptData, match="'1' has two parts named 'x'"):
        open_records(path)


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_no_mutation_leads_outside(tmp_path, format_: int) -> None:
    """Either an error that names the file, or samples that are in it."""
    random_source = random.Random(5)
    path = tmp_path / "a.tar"
    make_tar(path, {**MEMBERS, "long/" * 40 + "1.jpg": b"long"}, format_)
    whole = path.read_bytes().rstrip(b"\0") + bytes(1024)
    headers = [at for at in range(0, len(whole), 512) if whole[at + 257 : at + 262] == b"ustar"]
    for turn in range(200):
        data = bytearray(whole)
        at = random_source.choice(headers)
        for _ in range(random_source.choice([1, 3])):
            data[at + random_source.randrange(1024) % (len(data) - at)] = random_source.randrange(256)
        if turn % 2 and len(data) >= at + 512:  # as one who knows the format would do it
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
        if turn % 5 == 0:
            del data[random_source.randrange(512, len(data)) :]
        path.write_bytes(data)
        try:
            samples = read_all(path)
        except CorruptData as error:
            assert error.filename == str(path)
        else:
            assert sum(len(value) for sample in samples for value in sample.values()) <= len(data)


def test_sparse_files_are_refused(tmp_path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("1.x")
        info.pax_headers = {"GNU.sparse.major": "1"}
        tar.addfile(info)
    with pytest.raises(CorruptData, match="sparse"):
        open_records(tmp_path / "a.tar")


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ({"jpg": b""}, '"__key__"'),
        ({"__key__": "1"}, "at least one part"),
        ({"__key__": "a.b", "jpg": b""}, "keys have no point"),
        ({"__key__": "1", "JPG": b""}, "lower case"),
        ({"__key__": "", "jpg": b""}, "do not name a part"),
        ({"__key__": "1", "a/b": b""}, "have no slash"),
    ],
)
def test_samples_that_could_not_be_read_back_are_not_written(tmp_path, sample, words: str) -> None:
    with pytest.raises(ValueError, match=words), TarWriter(tmp_path / "a.tar") as writer:
        writer.write(sample)
    assert os.listdir(tmp_path) == []
    with pytest.raises(InvalidArgument, match=r"end in \.tar"):
        TarWriter(tmp_path / "a.tgz")
