"""What codes are worth: measures, tables, projections. NumPy; free of torch."""
