"""Data sets in the SKM-TEA layout: readers, transforms and a synthetic knee that writes the same files."""
