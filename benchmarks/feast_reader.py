"""Run by Feast's own Python: stores features in Feast, then reads them as it is told and says how long each read took.

    python feast_reader.py FOLDER features.parquet ENTITY_COLUMN

FOLDER holds feature_store.yaml; requests come in as JSON lines: how many reads of how many entities.
"""

import json
import random
import sys
import time
from datetime import timedelta
from pathlib import Path

import pandas as pd  # type: ignore[import-untyped]
from feast import Entity, FeatureStore, FeatureView, Field, FileSource  # type: ignore[import-not-found]
from feast.types import Float64  # type: ignore[import-not-found]
from feast.value_type import ValueType  # type: ignore[import-not-found]

TIME_COLUMN = "event_timestamp"


def main(folder: str, table: str, entity_column: str) -> None:
    """Store all rows of the table, then answer until the input ends."""
    rows = pd.read_parquet(table)
    features = [name for name in rows.columns if name not in (entity_column, TIME_COLUMN)]
    store = FeatureStore(repo_path=folder)
    entity = Entity(name="entity", join_keys=[entity_column], value_type=ValueType.STRING)
    view = FeatureView(
        name="view",
        entities=[entity],
        ttl=timedelta(0),
        schema=[Field(name=name, dtype=Float64) for name in features],
        source=FileSource(path=str(Path(table).resolve()), timestamp_field=TIME_COLUMN),
        online=True,
    )
    store.apply([entity, view])
    store.write_to_online_store("view", rows)
    ids = rows[entity_column].tolist()
    names = [f"view:{name}" for name in features]
    answer({"entities": len(ids), "features": len(names)})
    for line in sys.stdin:
        asked = json.loads(line)
        answer(
            [read(store, names, entity_column, random.choices(ids, k=asked["entities"])) for _ in range(asked["reads"])]
        )


def read(store: FeatureStore, names: list[str], entity_column: str, ids: list[str]) -> float:
    """Seconds that one read takes."""
    begin = time.perf_counter()
    found = store.get_online_features(features=names, entity_rows=[{entity_column: each} for each in ids]).to_dict()
    seconds = time.perf_counter() - begin
    if len(found) != len(names) + 1 or any(value is None for values in found.values() for value in values):
        raise ValueError(f"Feast did not find all {len(names)} features of {ids}")
    return seconds


def answer(value: object) -> None:
    """A line that is told from what Feast prints."""
    print("ANSWER", json.dumps(value), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
