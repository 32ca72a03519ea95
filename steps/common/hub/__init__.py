"""Files of a repository of the hub, whole and proven."""
