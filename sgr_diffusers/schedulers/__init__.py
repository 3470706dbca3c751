"""Schedulers of diffusers: which can be used, with which settings, and what a step means."""
