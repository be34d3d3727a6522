"""Keys of `config.json` that more than one part of the library reads; records of packed layers are in `artifact.format`."""

RESIZED = "bitstill_resized"
"""Layers that pruning made narrower than the configuration says; a model in torch carries its record under the same name."""
ATTENTION = "bitstill_attention"
"""Rules for the operands of attention products."""
POOLER = "bitstill_pooler"
"""False where an encoder was built without its pooler."""
TRANSFORMERS_WEIGHTS = "transformers_weights"
"""Where transformers reads the name of the file of weights. What an artifact says there is no file name, so that transformers
refuses the folder, and prints what to do, unless `bitstill.hf` is imported; see `hf.quantizer`."""
