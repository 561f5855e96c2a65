"""What is Ray's, and what watches over a run: the flow of data, supervision, metrics and logs."""
