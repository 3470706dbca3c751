"""Connects the pipeline to the tools of others; each module needs an extra of the package."""
