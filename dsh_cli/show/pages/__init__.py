"""Results as pages: single files that open from disk and ask nothing of the network."""
