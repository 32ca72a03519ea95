"""Declarative runbooks, executed idempotently from checkpointed state."""

__version__ = "0.1.0"
