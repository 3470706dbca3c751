"""Data and options enter, trained networks leave: the library behind ``training/*.py``."""
