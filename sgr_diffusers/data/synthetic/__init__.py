"""Synthetic knees: anatomy, contrast, findings, and the raw data a scanner would record of them."""
