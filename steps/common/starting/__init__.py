"""Starts of vLLM: followed through their phases, waited for while they compile, ended when they
hang."""
