"""Wheels, and pip as a program."""
