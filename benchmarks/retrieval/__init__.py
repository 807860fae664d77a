"""How well lessons are found: a labelled set, and what each embedder does on it."""
