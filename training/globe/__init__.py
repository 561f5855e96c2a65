"""A synthetic globe whose best possible answers are known."""
