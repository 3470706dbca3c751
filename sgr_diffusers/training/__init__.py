"""Train networks from data and options: the library behind ``training/*.py``."""
