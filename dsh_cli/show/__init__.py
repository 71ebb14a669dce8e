"""Results and trainings as people see them."""
