"""Models: transformers' own classes, from presets or local folders."""
