"""What stands beside a photo: which XMP sidecars and which of Google Takeout's JSON files belong to it, by their names."""
