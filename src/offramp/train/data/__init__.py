"""From text to batches: sources -> tokenizer -> corpus (on disk) -> batches. NumPy only."""
