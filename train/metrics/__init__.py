"""Metrics of ranked lists, one concept in one place. Codes are item codes (B, K), best first; `UNKNOWN` is padding.

accuracy      how early the right answers are named: Recall, NDCG, MRR, MAP, hit rate
catalogue     what all lists together show: coverage, Gini
variety       what one list shows: novelty, intra-list diversity
calibration   whether a list keeps the mix of the history
"""
