"""Tasks for lm-eval, and what runs the programs that a model writes."""
