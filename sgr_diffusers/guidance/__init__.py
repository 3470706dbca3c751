"""Guidance of the paper: losses and weights as pure functions, their strength, and guidance objects for a call."""
