"""How a model comes to be: hierarchy, data, loss, metrics, loop."""
