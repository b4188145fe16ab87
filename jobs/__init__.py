"""What is submitted to a cluster: `python -m jobs.<verb_noun>`, and what the jobs share."""
