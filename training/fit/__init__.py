"""Fitting a network: objective, loop, snapshots and the team of processes."""
