"""Moving backgrounds and other distractions for pixel tasks, and where their clips come from."""
