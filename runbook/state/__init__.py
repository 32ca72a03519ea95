"""What is known of a workspace: lock, checkpoints, runs, journals, logs."""
