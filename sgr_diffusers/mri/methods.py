"""Names of the methods of data consistency, for parsers that must not load torch."""

__all__ = ["CONSISTENCY", "FINAL_CONSISTENCY", "NOISE_AWARE_ITERATIONS"]

CONSISTENCY = ("cg", "noise_aware")
FINAL_CONSISTENCY = ("replace", "regularized", "least_squares")
NOISE_AWARE_ITERATIONS = 100
