"""Training: what a run does, from a request to a saved network."""
