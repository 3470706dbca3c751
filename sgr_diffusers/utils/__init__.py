"""Small helpers that any part of the package may use, and that use no other part."""
