"""Several drivers over one output, under a scheduler that decides by a seed who goes on, sleeps, dies or is not heard."""
