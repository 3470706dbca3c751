"""Scores, figures and tables."""
