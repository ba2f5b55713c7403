"""Experience of the agent itself: storage, segments on disk, uniform and prioritised draws."""
