"""Readers of raw data: one module per kind of source, each yielding tables in the contract of `data.schema`."""
