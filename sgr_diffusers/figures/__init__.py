"""Figures and tables of bounds and scores."""
