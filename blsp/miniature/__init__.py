"""The embedded default: a small, honest world in which the method can be seen to work."""
