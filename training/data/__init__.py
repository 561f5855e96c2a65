"""Labelled photos, their splits, augmentation and kept tokens."""
