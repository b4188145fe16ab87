import pyarrow as pa

from data.content import content_version, version_of


def version(*texts: str | None) -> str:
    return content_version([pa.table({"a": pa.array(texts, pa.string())})])


def test_neighbouring_texts_are_not_confused() -> None:
    assert len({version("ab", "c"), version("a", "bc"), version("abc", ""), version("abc", None), version("abc")}) == 5


def test_chunks_and_offsets_change_nothing() -> None:
    halves = pa.chunked_array([pa.array(["a"]), pa.array(["b"])])
    assert content_version([pa.table({"a": halves})]) == version("a", "b")
    assert content_version([pa.table({"a": pa.array(["x", "a", None, "b", "y"])}).slice(1, 3)]) == version(
        "a", None, "b"
    )


def test_types_names_and_lists_count() -> None:
    columns = [pa.array([1]), pa.array([1.0]), pa.array(["1"]), pa.array([["1"]]), pa.array([["1", "2"]])]
    assert len({content_version([pa.table({name: column})]) for name in "ab" for column in columns}) == 10


def test_a_data_set_is_its_buckets_in_order_and_the_rest() -> None:
    items = pa.table({"item_id": ["x"]})
    assert len({version_of(["1", "2"], [items]), version_of(["2", "1"], [items]), version_of(["1", "2"], [])}) == 3
