"""A run's own affairs: its plan, staged rows, publishing, checks, and what is removed when."""
