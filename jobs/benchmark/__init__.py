"""One file a benchmark, and figures with their aims."""
