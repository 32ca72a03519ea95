"""Quantises the routed experts of an MTP block with GPTQ.

This package runs in an environment with torch, which need not have runbook: it imports itself
relatively and torch, safetensors and numpy, nothing else. `launch.py` starts it.
"""
