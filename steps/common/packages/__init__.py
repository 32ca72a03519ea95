"""Packages of Python: the user's indexes, wheels and their records, pip and uv as programs."""
