"""Demonstrations: made, stored, checked, exchanged, cut into windows, and played against."""
