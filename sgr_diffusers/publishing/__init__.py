"""Publishes folders of results as repositories on the Hub: fills cards from records, checks, compares and pushes."""
