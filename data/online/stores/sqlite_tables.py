"""The tables of an online store in SQLite: those there once, and those of each published version."""

SHARED = """
CREATE TABLE IF NOT EXISTS log (
    source_row INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, user_id TEXT NOT NULL, item_id TEXT NOT NULL,
    event_type TEXT NOT NULL, value REAL NOT NULL, event_time INTEGER NOT NULL, ingest_time INTEGER NOT NULL,
    decision_id TEXT
);
CREATE TABLE IF NOT EXISTS counters (
    only INTEGER PRIMARY KEY CHECK (only = 0), next_row INTEGER NOT NULL, last_stamp INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS versions (
    number INTEGER PRIMARY KEY AUTOINCREMENT, definitions TEXT NOT NULL, fingerprints TEXT NOT NULL,
    data_version TEXT NOT NULL, buckets INTEGER NOT NULL, shards INTEGER NOT NULL, events INTEGER NOT NULL,
    applied INTEGER NOT NULL, published INTEGER NOT NULL DEFAULT 0
);
"""
"""`versions.applied`: the source row up to which appended events are in the states. `published`: 0 while it is being
written, else in which order it was published."""

OF_VERSION = {
    "user": "(id TEXT PRIMARY KEY, value BLOB NOT NULL, memory BLOB NOT NULL)",
    "item": "(id TEXT PRIMARY KEY, value BLOB NOT NULL, memory BLOB NOT NULL)",
    "everything": "(id TEXT PRIMARY KEY, value BLOB NOT NULL, memory BLOB NOT NULL)",
    "met": "(user_id TEXT, item_id TEXT, PRIMARY KEY (user_id, item_id)) WITHOUT ROWID",
    "attributes": "(user_id TEXT PRIMARY KEY, tokens TEXT NOT NULL)",
    "ids": "(shard INTEGER PRIMARY KEY, hashes BLOB NOT NULL)",
    "brought": "(source_row INTEGER PRIMARY KEY)",
    "buckets": "(entity TEXT, bucket INTEGER, digest TEXT, PRIMARY KEY (entity, bucket))",
}
"""The tables of a version: user_7, item_7, … An entity's table is named after it."""
