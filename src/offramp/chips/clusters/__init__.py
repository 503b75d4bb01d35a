"""Cluster files: how they are read, and the defaults for what they leave out."""
