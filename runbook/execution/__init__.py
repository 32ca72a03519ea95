"""Carrying out a plan: attempts, their processes, undo and cancel."""
