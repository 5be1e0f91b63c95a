"""The run record and its locks."""
