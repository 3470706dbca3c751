"""From a file of raw k-space to bounds of a volume, their table and their figure."""
