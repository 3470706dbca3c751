"""Handles pipelines as repositories on the Hub: checks them, saves them with their code, loads them without it."""
