"""What Towerline learns from: the event contract, its sources, validation, features and stores.

What is declared
    schema          the columns of events, items and users
    expectations    what rows and tables must keep besides
    features        the feature views (views, aggregations; fingerprints tell their versions apart)

Where it comes from and where it stays
    sources/        Parquet, CSV, JSON Lines, SQL, Kafka, Redis Streams
    quality/        rules and how rows are validated; the report of what came in, with its page
    ingest/         read, validate, put in order, write: from raw rows to a data set
    dataset         events by buckets of users and of items (buckets, content, versions, splits, events)

What is computed from it
    temporal/       features as of any past moment: `point_in_time` is the kernel of everything below
    offline/        tables of features: of a whole data set (`pipeline`), of anybody's examples (`feature_join`)
    online/         features as of now, in SQLite or Redis, kept up to date from data sets and streams
    checks/         proofs: no view sees the future (`leakage`), online equals offline (`skew`)
    feature_client  features in a notebook

Under all of it: parallel (in process or on Ray), disk, moments.
"""
