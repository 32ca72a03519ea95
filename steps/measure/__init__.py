"""What is measured of a served model by hand: its speed (`bench`), its answers (`eval`), and which
flags serve it best (`tune`). The verbs are in `runbook.steps.VERBS`."""
