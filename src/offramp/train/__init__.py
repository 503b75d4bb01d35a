"""Training a language model, from text to checkpoint: the verb `offramp train`."""
