"""The network and the shape of the world it predicts over."""
