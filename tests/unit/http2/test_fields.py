"""Header blocks read and written in short ways mean what ``hpack`` makes of them."""

from __future__ import annotations

import hpack
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.adapters.request_plane.http2.fields import (
    FieldDecoder,
    FieldEncoder,
    Malformed,
    Recurring,
    literal,
)
from dynamo.adapters.request_plane.http2.frames import Violation

NAMES = ["x-request-id", "dynamo-timeout", "content-type", "accept", "dynamo-meta-a", "te-x", "x" * 130]
VALUES = ["", "a", "application/json", "1.5", "é", "y" * 126, "y" * 127, "y" * 400, "z" * 5000]
FIELD = st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES))
BLOCK = st.lists(FIELD, max_size=8, unique_by=lambda field: field[0])


@settings(max_examples=50)
@given(
    st.lists(st.tuples(BLOCK, st.booleans(), st.sampled_from([None, None, None, 0, 100, 4096])), max_size=8)
)
def test_blocks_of_any_encoder_are_read_as_hpack_reads_them(
    blocks: list[tuple[list[tuple[str, str]], bool, int | None]],
) -> None:
    encoder, decoder = hpack.Encoder(), FieldDecoder()
    for fields, huffman, table in blocks:
        if table is not None:
            encoder.header_table_size = table
        assert decoder.decode(encoder.encode(fields, huffman=huffman)) == dict(fields)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), BLOCK, st.sampled_from([None, None, 0, 64, 2**32 - 1])), max_size=12
    )
)
def test_hpack_reads_what_is_written_however_often_it_recurs(
    blocks: list[tuple[int, list[tuple[str, str]], int | None]],
) -> None:
    encoder, decoder = FieldEncoder(), hpack.Decoder()
    decoder.max_allowed_table_size = 2**32 - 1
    recurring = [
        Recurring(
            [(":status", "200"), ("content-type", f"kind/{number}")]
            + [("x-long", "l" * 3000)] * (number == 3)
        )
        for number in range(4)
    ]
    for number, once, table in blocks:
        if table is not None:
            encoder.limit_table(table)
        said = encoder.encode(recurring[number]) + b"".join(literal(name, value) for name, value in once)
        assert list(decoder.decode(said)) == [*map(tuple, recurring[number].fields), *once]
        assert list(decoder.decode(encoder.encode_once(once))) == once  # type: ignore[comparison-overlap]


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_any_bytes_are_fields_or_none(blocks: list[bytes]) -> None:
    """What one reads, the other reads too, for as long as both go on."""
    decoder, theirs = FieldDecoder(), hpack.Decoder()
    for block in blocks:
        try:
            found: dict[str, str] | None = decoder.decode(block)
        except Malformed:
            found = None
        except Violation:
            return
        expected = {name.decode(errors="replace") for name, _ in theirs.decode(block, raw=True)}
        assert found is None or set(found) == expected
