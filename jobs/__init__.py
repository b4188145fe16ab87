"""What is submitted to a cluster: one module per job, run as `python -m jobs.<verb_noun>`."""
