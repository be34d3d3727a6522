"""Programs: the computation of a network as a short list of operations, planned from config.json. No torch."""
