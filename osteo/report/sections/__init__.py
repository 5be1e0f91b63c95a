"""Sections of the report that stand by themselves."""
