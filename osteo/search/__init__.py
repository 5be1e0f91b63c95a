"""Searches of the best configuration: hydra/sweeper=search."""
