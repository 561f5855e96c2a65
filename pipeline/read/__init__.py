"""Fetching and decoding of planned photos, in processes of their own where a photo may be hostile."""
