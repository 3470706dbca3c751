"""Checkpoints of the paper's authors: read safely, converted to our networks and back."""
