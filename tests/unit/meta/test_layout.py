import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luciola.config import MetaConfig
from luciola.errors import InvalidArgument, Unavailable
from luciola.meta.layout import Placer, chain_of, chains_of, length_max, permute, validate
from luciola.wire.pb.meta_pb2 import Layout
from luciola.wire.pb.mgmtd_pb2 import ChainTable

CHAINS = tuple(range(100, 108))


def test_vector_of_the_format_page():
    layout = Layout(permutation_version=1, base=3, stripe=8, seed=42)
    assert chains_of(layout, CHAINS) == (106, 104, 101, 105, 107, 103, 102, 100)


def test_first_numbers_of_splitmix64_are_the_published_ones():
    # Seed 1234567: 6457827717110365317, 3203168211198807973, ... (Vigna's reference program).
    numbers = (6457827717110365317, 3203168211198807973, 9817491932198370423)
    run = list(range(4))
    for last, number in zip((3, 2, 1), numbers, strict=True):
        other = number % (last + 1)
        run[last], run[other] = run[other], run[last]
    assert permute(range(4), 1234567) == tuple(run)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=50, unique=True), st.integers(0, 2**64 - 1))
def test_permutation_keeps_every_chain(run, seed):
    assert sorted(permute(run, seed)) == sorted(run)


@given(st.integers(1, 20), st.integers(1, 30), st.integers(0, 100), st.integers(0, 2**64 - 1))
def test_chunks_go_round_the_run(count, stripe, base, seed):
    table = list(range(500, 500 + count))
    layout = Layout(permutation_version=1, base=base, stripe=stripe, seed=seed)
    width = min(count, stripe)
    first = [chain_of(layout, table, index) for index in range(width)]
    assert sorted(first) == sorted(table[(base + place) % count] for place in range(width))
    assert [chain_of(layout, table, index) for index in range(width, 2 * width)] == first


def placer(*, stripe=4, chains=CHAINS):
    made = Placer(MetaConfig(stripe=stripe), seed=7)
    made.set_tables([ChainTable(id=3, version=9, chains=chains)])
    return made


def test_files_use_chains_evenly():
    made = placer(stripe=3)
    used = collections.Counter()
    for _ in range(8 * 30):
        used.update(made.chains(made.place(made.template(None, None))))
    assert set(used.values()) == {3 * 30}


def test_place_names_the_table_and_its_version():
    layout = placer().place(placer().template(None, None))
    assert (layout.table, layout.table_version, layout.permutation_version) == (3, 9, 1)


def test_stripe_is_bounded_by_the_table():
    made = placer(stripe=64)
    layout = made.place(made.template(None, None))
    assert layout.stripe == 64
    assert len(made.chains(layout)) == 8


def test_no_table_no_file():
    made = Placer(MetaConfig())
    with pytest.raises(Unavailable):
        made.place(made.template(None, None))
    made.set_tables([ChainTable(id=1, chains=[])])
    with pytest.raises(Unavailable):
        made.place(made.template(None, None))


def test_table_that_does_not_exist_is_refused():
    with pytest.raises(InvalidArgument, match=r"layout\.table 8"):
        placer().template(Layout(table=8), None)
    with pytest.raises(Unavailable):
        Placer(MetaConfig()).template(Layout(table=8), None)


def test_template_fills_what_is_not_given():
    base = Layout(table=3, chunk_bytes=1 << 17, stripe=5, inline_bytes=7)
    template = placer().template(Layout(stripe=2), base)
    assert (template.table, template.chunk_bytes, template.stripe) == (3, 1 << 17, 2)
    assert template.inline_bytes == 7
    assert placer().template(Layout(inline_bytes=0), base).inline_bytes == 0


def test_default_names_the_table_that_new_files_get():
    assert placer().default.table == 3
    assert Placer(MetaConfig()).default.table == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"chunk_bytes": 0},
        {"chunk_bytes": 32 << 10},
        {"chunk_bytes": (64 << 10) + 1},
        {"chunk_bytes": 128 << 20},
        {"stripe": 0},
        {"stripe": 1025},
        {"inline_bytes": (64 << 10) + 1},
        {"permutation_version": 2},
    ],
)
def test_layouts_without_sense_are_refused(wrong):
    fine = {"chunk_bytes": 1 << 20, "stripe": 4, "inline_bytes": 0, "permutation_version": 1}
    validate(Layout(**fine))
    with pytest.raises(InvalidArgument):
        validate(Layout(**fine | wrong))


def test_longest_file_fits_32_bits_of_chunk_index():
    assert length_max(Layout(chunk_bytes=1 << 16)) == 1 << 48


def test_files_keep_the_version_of_the_table_they_were_made_with():
    made = Placer(MetaConfig(stripe=2), seed=7)
    old = ChainTable(id=3, version=1, chains=[10, 11])
    made.set_tables([old])
    layout = made.place(made.template(None, None))
    made.set_tables([ChainTable(id=3, version=2, chains=[20, 21, 22]), old])
    assert set(made.chains(layout)) == {10, 11}
    newer = made.place(made.template(None, None))
    assert newer.table_version == 2
    assert set(made.chains(newer)) < {20, 21, 22}
    made.set_tables([ChainTable(id=3, version=2, chains=[20, 21, 22])])
    with pytest.raises(Unavailable, match="version 1"):
        made.chains(layout)


def test_version_of_a_table_with_fewer_chains_than_the_one_before_takes_over_at_any_time():
    made = Placer(MetaConfig(stripe=1), seed=7)
    tables = [ChainTable(id=3, version=1, chains=range(10, 30))]
    made.set_tables(tables)
    assert made.place(made.template(None, None)).base >= 2
    made.set_tables([*tables, ChainTable(id=3, version=2, chains=[1, 2])])
    placed = [made.place(made.template(None, None)) for _ in range(4)]
    assert [layout.base for layout in placed] in ([0, 1, 0, 1], [1, 0, 1, 0])
