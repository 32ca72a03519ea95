"""Patch series: their form, what state a source is in, and the changes that apply them.

Nothing here writes a file. A source is a function from path to content, and the answer is the
content of every path that changes, so a series applies whole or not at all. The form of the
files is described in `patches/README.md`.
"""
