"""From archives to batches."""
