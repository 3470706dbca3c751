"""From folders of results to repositories on the Hub: cards filled from records, checked, compared and pushed."""
