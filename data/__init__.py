"""What Towerline learns from: the event contract, its sources, validation, features and stores.

What is declared
    schema          the columns of events, items and users
    expectations    what rows and tables must keep besides (rules, table_rules)
    features        the feature views (views, aggregations)

From raw rows to a data set
    sources/        Parquet, CSV, JSON Lines, SQL, Kafka, Redis Streams
    ingestion       read, validate, put in order, write (validation, ingest_*, pieces, attributes, moments, events)
    validation_report   what came in (findings, statistics, sketches, distribution, validation_page, column_card)
    dataset         events by buckets of users and of items (buckets, content, versions, splits)

Features as of any past moment
    point_in_time   the join (timeline, visibility, cells, distinct, decay)
    pipeline        examples of a whole data set (examples, feature_build, slices, building), kept in offline_store
    feature_join    features for anybody's examples
    feature_client  features in a notebook
    leakage         proves that no view sees the future

Features as of now
    online_store    SQLite or Redis (stores/), one packed value per entity (entity_state, states/)
    materialization from a data set to that store; streaming: from a stream to it
    skew            proves that both agree (replay)
"""
