"""What stands beside a photo: its XMP sidecars, and Google Takeout's JSON of it, found by their names."""
