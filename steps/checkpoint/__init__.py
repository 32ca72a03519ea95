"""What a checkpoint is: headers, layouts, quantisation, and the linter."""
