"""Picture files to pixels. Free of torch."""
