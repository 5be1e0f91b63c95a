"""Learns from pictures without labels, and from none that is to test."""
