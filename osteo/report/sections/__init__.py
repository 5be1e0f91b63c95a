"""Sections of a report that are there for some sweeps only."""
