"""Hugging Face transformers: pretrained models and tokenizers, artifacts through `from_pretrained`, losses for `Trainer`.

    import bitstill.hf
    from transformers import pipeline

    classify = pipeline("text-classification", model="student-1bit")

Importing this package, before or after transformers, registers bitstill as a quantization method of transformers, so that
`from_pretrained` and `pipeline` load artifacts. In a process that has not imported it, transformers refuses an artifact. No
other folder of bitstill imports transformers.
"""

from bitstill.hf.quantizer import BitstillConfig, BitstillQuantizer

__all__ = ["BitstillConfig", "BitstillQuantizer"]
