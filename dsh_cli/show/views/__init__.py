"""Results as Rich tables, plain lines or JSON, a file a command. Knows nothing of who asks."""
