from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.buckets import bucket_of
from data.ingest.pieces import read_pieces, write_piece


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 200), max_size=3),
    rows_per_batch=st.integers(1, 300),
    power=st.integers(0, 5),
)
def test_every_row_is_in_its_bucket_once(
    sizes: list[int], rows_per_batch: int, power: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder: Path = tmp_path_factory.mktemp("pieces")
    frames = [
        pl.DataFrame(
            {"id": [f"é{n % 23}" for n in range(size)], "n": range(size)}, schema={"id": pl.String, "n": pl.Int64}
        )
        for size in sizes
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.ingest.pieces.ROWS_PER_BATCH", rows_per_batch)
        paths = [write_piece(folder / f"{number}.arrow", frame, "id") for number, frame in enumerate(frames)]
    for number, frame in enumerate(frames):
        found = [read_pieces(paths, "id", bucket, 2**power)[number] for bucket in range(2**power)]
        assert pl.concat(found).sort("n").equals(frame)
        for bucket, rows in enumerate(found):
            assert {bucket_of(row, 2**power) for row in rows["id"]} <= {bucket}
