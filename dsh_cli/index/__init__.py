"""A persistent set of codes."""
