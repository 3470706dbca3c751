"""Reconstruct bounds of a volume from a file of raw k-space; write their table and their figure."""
