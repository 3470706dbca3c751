"""The pipeline: checks of its inputs, calls of its networks, the reverse process and its output."""
