"""Proofs: `leakage` that no view sees the future, `skew` that online equals offline."""
