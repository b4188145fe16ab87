"""Other people's recommenders, each run by a script that their own environment executes.

Nothing here imports Towerline: `contract` says which files pass between a benchmark and a peer.
"""
