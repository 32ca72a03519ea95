"""What people and programs see: verbs, their targets, their answers."""
