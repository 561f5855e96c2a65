"""How right a model is, how honest its confidence, and the page that shows it."""
