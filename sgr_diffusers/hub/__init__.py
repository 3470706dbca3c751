"""Pipelines as repositories on the Hub: checked, saved with their code, loaded without it."""
