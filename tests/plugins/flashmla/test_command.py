"""`luciola flashmla`, as a user types it."""

import json

import pytest
import torch
from click.testing import CliRunner

from luciola.plugins.flashmla import PageCache, PagedKVFile, PageLayout
from luciola.plugins.flashmla.command import flashmla

LAYOUT = PageLayout(layers=2, page_tokens=4)


def run(*arguments):
    result = CliRunner().invoke(flashmla, list(arguments))
    return result.exit_code, result.output


@pytest.fixture
def path(tmp_path):
    path = str(tmp_path / "chat.pages")
    cache = PageCache.allocate(LAYOUT, 2)
    cache.layers[1].copy_(torch.randn(cache.layers[1].shape))
    with PagedKVFile.create(path, LAYOUT, 5, model="m") as file:
        file.save(file.names(range(6)), [0, 1], cache).wait()
    return path


def test_show(path):
    code, text = run("show", path)
    assert code == 0
    assert "2 of 5, 6 tokens" in text
    assert "2 layers of bf16, 4 tokens a page" in text
    report = json.loads(run("show", "--json", path)[1])
    assert (report["pages"], report["capacity"], report["tokens"]) == (2, 5, 6)


def test_verify_of_whole_and_damaged_files(path):
    assert run("verify", path) == (0, "2 pages, 0 damaged\n")
    with PagedKVFile.open(path) as file:
        offset = file.header.record_offset(1) + LAYOUT.layer_stride
    with open(path, "r+b") as raw:
        raw.seek(offset)
        raw.write(b"\x99")
    code, text = run("verify", path)
    assert code == 1
    assert text == "page 1, layer 1: the bytes do not match their checksum\n2 pages, 1 damaged\n"
    code, text = run("verify", "--json", path)
    assert code == 1
    assert [(each["page"], each["layer"]) for each in json.loads(text)["damaged"]] == [(1, 1)]


def test_what_is_no_file_of_pages_is_refused(tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"hello")
    code, text = run("show", str(other))
    assert code == 1
    assert "not a file of KV pages" in text
    code, text = run("verify", str(tmp_path / "missing"))
    assert code == 1
    assert "missing" in text


@pytest.mark.parametrize("name", ["show", "verify"])
def test_help_has_an_example(name):
    assert f"luciola flashmla {name}" in run(name, "--help")[1]
