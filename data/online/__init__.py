"""Features as of now: `store` reads and updates them, `materialization` and `streaming` fill it."""
