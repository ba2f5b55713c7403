"""What a run keeps: its directory, checkpoints, metrics, events and status."""
