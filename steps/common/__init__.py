"""What several kinds of step share."""
