"""The report: what it counts, its charts, its map and its page."""
