"""Published systems as recipes, and what a recipe of one's own has to offer."""

from bitstill.recipes.binarybert import BinaryBERT as BinaryBERT
from bitstill.recipes.differentiable_quantization import DifferentiableQuantization as DifferentiableQuantization
from bitstill.recipes.fine_tuning import FineTuning as FineTuning
from bitstill.recipes.general_distillation import GeneralDistillation as GeneralDistillation
from bitstill.recipes.post_training import PostTraining as PostTraining
from bitstill.recipes.pqk import PQK as PQK
from bitstill.recipes.quantized_distillation import QuantizedDistillation as QuantizedDistillation
from bitstill.recipes.recipe import Recipe as Recipe
from bitstill.recipes.recipe import RunContext as RunContext
from bitstill.recipes.xtc import XTC as XTC
