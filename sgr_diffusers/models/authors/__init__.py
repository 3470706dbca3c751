"""Read checkpoints of the paper's authors safely, and convert them to our networks and back."""
