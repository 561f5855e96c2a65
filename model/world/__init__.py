"""The world as the model divides it: S2 cells, their hierarchy, distances, and where photos are taken."""
