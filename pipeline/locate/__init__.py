"""From pixels to a place: the engine's readings, names of places, precision and the album's context."""
