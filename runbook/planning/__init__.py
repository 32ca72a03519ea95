"""What a run would do: looking at steps, deciding, checking."""
