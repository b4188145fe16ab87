"""From raw rows to a data set; `ingestion` is the way in, `graph` the Ray Data graph behind it."""
