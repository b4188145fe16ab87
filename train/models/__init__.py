"""The models: two-tower retrieval, the ranker and the baselines they are measured against."""
