"""A page that answers."""
