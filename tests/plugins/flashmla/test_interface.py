"""What the functions refuse, with errors that are the original's and Python's; schedules; layers; shims."""

import importlib
import inspect
import subprocess
import sys

import pytest
import torch

import mla_cases as cases
from luciola.plugins import flashmla
from luciola.plugins.flashmla import (
    FlashMLASchedMeta,
    flash_attn_varlen_func,
    flash_mla_sparse_fwd,
    flash_mla_with_kvcache,
    get_mla_metadata,
    layer_for,
    quantize_model1,
    quantize_v32,
    using_layer,
)


@pytest.fixture(autouse=True)
def _reference():
    with using_layer("reference"):
        yield


def call(**changes):
    """A dense call of two sequences with some arguments changed."""
    case = cases.dense(1, [5, 70], s_q=2, h_q=4, h_kv=2)
    arguments = {
        "q": case.q,
        "k_cache": case.k_cache,
        "block_table": case.block_table,
        "cache_seqlens": case.cache_seqlens,
        "head_dim_v": 512,
        "tile_scheduler_metadata": get_mla_metadata()[0],
        **changes,
    }
    return flash_mla_with_kvcache(**arguments)


def sparse_call(layout="v32", **changes):
    width = 576 if layout == "v32" else 512
    quantize = quantize_v32 if layout == "v32" else quantize_model1
    arguments = {
        "q": cases.rows(1, 2, 1, 3, width),
        "k_cache": quantize(cases.rows(2, 4, 8, 1, width)),
        "block_table": None,
        "cache_seqlens": None,
        "head_dim_v": 512,
        "is_fp8_kvcache": True,
        "indices": cases.indices(3, (2, 1, 64), 32),
        "tile_scheduler_metadata": get_mla_metadata()[0],
        **changes,
    }
    return flash_mla_with_kvcache(**arguments)


def test_signatures_are_the_originals():
    names = list(inspect.signature(flash_mla_with_kvcache).parameters)
    assert names == [
        *(
            "q",
            "k_cache",
            "block_table",
            "cache_seqlens",
            "head_dim_v",
            "tile_scheduler_metadata",
            "num_splits",
        ),
        *("softmax_scale", "causal", "is_fp8_kvcache", "indices", "attn_sink", "extra_k_cache"),
        *("extra_indices_in_kvcache", "topk_length", "extra_topk_length"),
    ]
    names = list(inspect.signature(flash_mla_sparse_fwd).parameters)
    assert names == ["q", "kv", "indices", "sm_scale", "d_v", "attn_sink", "topk_length"]
    names = list(inspect.signature(flash_attn_varlen_func).parameters)
    assert names == [
        *("q", "k", "v", "cu_seqlens_qo", "cu_seqlens_kv", "max_seqlen_qo", "max_seqlen_kv", "dropout_p"),
        *("softmax_scale", "causal", "deterministic", "is_varlen"),
    ]


def test_metadata_takes_the_old_arguments_and_fills_itself_once():
    schedule, nothing = get_mla_metadata(torch.tensor([1, 2]), 4, h_kv=1, topk=3)
    assert nothing is None
    assert schedule == FlashMLASchedMeta()
    call(tile_scheduler_metadata=schedule)
    table = schedule.tile_scheduler_metadata
    assert schedule.have_initialized
    assert (table.shape[1], table.dtype, schedule.num_splits.shape) == (8, torch.int32, (3,))
    call(tile_scheduler_metadata=schedule)
    assert schedule.tile_scheduler_metadata is table


def test_a_schedule_of_another_call_is_refused():
    schedule, _ = get_mla_metadata()
    call(tile_scheduler_metadata=schedule)
    with pytest.raises(AssertionError, match=r"causal was False and is True.*get_mla_metadata\(\)"):
        call(tile_scheduler_metadata=schedule, causal=True)
    with pytest.raises(ValueError, match="topk was None and is 64"):
        sparse_call(tile_scheduler_metadata=schedule)


INT = torch.int32
DENSE = [
    ({"q": torch.zeros(2, 2, 4, 100).bfloat16()}, r"q\.shape is \(2, 2, 4, 100\).*576"),
    (
        {"q": torch.zeros(2, 2, 4, 576)},
        "q has dtype torch.float32; it must be torch.bfloat16 or torch.float16",
    ),
    ({"q": torch.zeros(2, 2, 4, 576).half()}, "k_cache has dtype torch.bfloat16; it must be torch.float16"),
    ({"q": torch.zeros(2, 2, 3, 576).bfloat16()}, "heads of q is 3; they must be a multiple of k_cache's 2"),
    ({"q": torch.zeros(2, 2, 576, 4).bfloat16().transpose(2, 3)}, "last dimension must be contiguous"),
    ({"q": "x"}, "q is a str; it must be a tensor"),
    ({"q": torch.zeros(2, 2, 4, 512).bfloat16()}, "k_cache.shape is"),
    ({"head_dim_v": 128}, "head_dim_v is 128; it must be 512"),
    ({"num_splits": torch.zeros(2)}, "num_splits must be None"),
    ({"tile_scheduler_metadata": torch.zeros(2)}, r"is a Tensor; pass what get_mla_metadata\(\)"),
    ({"block_table": None}, "block_table and cache_seqlens must be given"),
    ({"cache_seqlens": None}, "block_table and cache_seqlens must be given"),
    ({"block_table": torch.zeros(3, 2, dtype=INT)}, r"block_table\.shape is \(3, 2\); it must be \(2, any\)"),
    ({"block_table": torch.zeros(2, 2)}, "block_table has dtype torch.float32; it must be torch.int32"),
    ({"cache_seqlens": torch.zeros(2, dtype=torch.int64)}, "cache_seqlens has dtype torch.int64"),
    (
        {"cache_seqlens": torch.tensor([-1, 2], dtype=INT)},
        r"cache_seqlens\[0\] is -1; block_table has room for 0 to",
    ),
    ({"cache_seqlens": torch.tensor([1, 999], dtype=INT)}, r"cache_seqlens\[1\] is 999"),
    (
        {"block_table": torch.full((2, 2), 77, dtype=INT)},
        r"block_table\[0\] is 77; for 5 tokens it must name pages",
    ),
    ({"attn_sink": torch.zeros(4)}, "belong to sparse calls"),
    ({"topk_length": torch.zeros(2, dtype=INT)}, "belong to sparse calls"),
    ({"is_fp8_kvcache": True}, "an FP8 cache is float8_e4m3fn, int8 or uint8"),
    (
        {
            "q": torch.zeros(2, 2, 4, 576).half(),
            "k_cache": quantize_v32(torch.zeros(3, 64, 1, 576)),
            "is_fp8_kvcache": True,
        },
        "q has dtype torch.float16; over an FP8 cache it must be bfloat16",
    ),
    ({"k_cache": torch.zeros(3, 0, 2, 576).bfloat16()}, "a page must have at least one token"),
]


@pytest.mark.parametrize(("changes", "message"), DENSE)
def test_dense_calls_that_are_refused(changes, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        call(**changes)
    assert isinstance(caught.value, RuntimeError | AssertionError), "callers of the original catch these"


SPARSE = [
    ("v32", {"causal": True}, "causal must be False with indices"),
    ("v32", {"topk_length": torch.zeros(2, dtype=INT)}, "belong to the layout of 584 bytes"),
    ("v32", {"indices": torch.zeros(2, 1, 64)}, "indices has dtype torch.float32"),
    (
        "v32",
        {"indices": torch.zeros(2, 64, dtype=INT)},
        r"indices\.shape is \(2, 64\); it must be \(2, 1, any\)",
    ),
    ("v32", {"attn_sink": torch.zeros(2)}, r"attn_sink\.shape is \(2,\); it must be \(3,\)"),
    ("v32", {"q": cases.rows(1, 2, 1, 3, 512)}, "with 656 bytes a token it must be 576"),
    ("v32", {"q": cases.rows(1, 2, 1, 3, 576).half()}, "sparse decoding takes bfloat16"),
    ("model1", {"extra_topk_length": torch.zeros(2, dtype=INT)}, "extra_topk_length needs extra_k_cache"),
    ("model1", {"extra_indices_in_kvcache": torch.zeros(2, 1, 4, dtype=INT)}, "must be given together"),
    (
        "model1",
        {
            "extra_k_cache": quantize_v32(cases.rows(2, 4, 8, 1, 576)),
            "extra_indices_in_kvcache": torch.zeros(2, 1, 4, dtype=INT),
        },
        r"extra_k_cache.shape\[3\] is 656; as k_cache's it must be 584",
    ),
]


@pytest.mark.parametrize(("layout", "changes", "message"), SPARSE)
def test_sparse_calls_that_are_refused(layout, changes, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        sparse_call(layout, **changes)
    assert isinstance(caught.value, RuntimeError | AssertionError)


def test_sparse_over_numbers_that_are_not_fp8_is_refused():
    rows = cases.rows(2, 4, 8, 1, 576)
    with pytest.raises(AssertionError, match="pass is_fp8_kvcache=True"):
        sparse_call(k_cache=rows, is_fp8_kvcache=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout_p": 0.1}, "dropout_p is 0.1; there is no dropout"),
        ({"deterministic": True}, "deterministic must be False"),
        ({"v": cases.rows(3, 5, 2, 64)}, r"v\.shape is \(5, 2, 64\)"),
        ({"max_seqlen_qo": 2}, "max length of cu_seqlens_qo is 2; the longest sequence has 3"),
        ({"cu_seqlens_kv": torch.tensor([0, 4, 3], dtype=INT)}, "must rise from 0 to at most 5"),
        ({"cu_seqlens_kv": torch.tensor([0, 5], dtype=INT)}, r"len\(cu_seqlens_kv\) is 2"),
        ({"k": cases.rows(2, 5, 3, 128), "v": cases.rows(2, 5, 3, 128)}, "must be a multiple of k's 3"),
    ],
)
def test_varlen_calls_that_are_refused(changes, message):
    starts = torch.tensor([0, 3, 5], dtype=INT)
    arguments = {
        "q": cases.rows(1, 5, 2, 128),
        "k": cases.rows(2, 5, 2, 128),
        "v": cases.rows(3, 5, 2, 128),
        "cu_seqlens_qo": starts,
        "cu_seqlens_kv": starts,
        "max_seqlen_qo": 3,
        "max_seqlen_kv": 3,
        **changes,
    }
    with pytest.raises((ValueError, TypeError), match=message):
        flash_attn_varlen_func(**arguments)


def test_layers_are_chosen_and_named():
    assert layer_for(torch.zeros(1)) == "reference"
    with using_layer("triton"):
        assert layer_for(torch.zeros(1)) == "triton"
    with pytest.raises(ValueError, match="there is no layer 'cuda'; choose one of"), using_layer("cuda"):
        pass


def test_the_fast_path_is_refused_where_it_cannot_run():
    q, listed = cases.rows(1, 1, 1, 512), torch.zeros(1, 1, 1, dtype=torch.int32)
    with using_layer("hopper"), pytest.raises(RuntimeError, match="does not run the fast path for Hopper"):
        flash_mla_sparse_fwd(q, q, listed, 1.0)


def test_importing_the_package_imports_neither_torch_nor_triton():
    code = "import luciola.plugins.flashmla, sys; print({'torch', 'triton'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"


def test_every_public_name_is_there_once():
    assert sorted(flashmla.__all__) == flashmla.__all__
    assert all(getattr(flashmla, name) is not None for name in flashmla.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        flashmla.nothing  # noqa: B018
    assert importlib.import_module("luciola.plugins.flashmla.kernel").INTERPRETED
