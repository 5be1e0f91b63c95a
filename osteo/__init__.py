"""Experiments that detect osteoporosis in knee radiographs."""
