"""The models: two-tower retrieval, the ranker, and candidate sources that learn from events alone."""
