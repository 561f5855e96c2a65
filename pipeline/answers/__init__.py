"""Answers in other people's formats: exports and sidecars."""
