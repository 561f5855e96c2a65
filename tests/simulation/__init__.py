"""Several drivers over one output; by a seed it is decided who goes on, sleeps, dies or is not heard."""
