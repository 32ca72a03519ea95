"""`runbook new`: a book for a model that none of the shipped ones is for.

It is written from what can be known: the checkpoint's headers and config, this machine, the newest
locked vLLM, a recipe if there is one. What cannot be known is asked by name (`asking`).
"""
