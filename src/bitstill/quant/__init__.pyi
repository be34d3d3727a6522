"""Quantizers of weights, inputs and attention products, their settings, and the rules that say which layers get them."""

from bitstill.quant.base import Clipped as Clipped
from bitstill.quant.base import CountedLevels as CountedLevels
from bitstill.quant.base import ExactScale as ExactScale
from bitstill.quant.base import OptimizerStep as OptimizerStep
from bitstill.quant.base import Quantizer as Quantizer
from bitstill.quant.base import Splittable as Splittable
from bitstill.quant.base import State as State
from bitstill.quant.base import StraightThrough as StraightThrough
from bitstill.quant.binary import Binary as Binary
from bitstill.quant.granularity import Bucket as Bucket
from bitstill.quant.granularity import Granularity as Granularity
from bitstill.quant.granularity import PerChannel as PerChannel
from bitstill.quant.granularity import PerGroup as PerGroup
from bitstill.quant.granularity import PerTensor as PerTensor
from bitstill.quant.inputs import QuantizeAttention as QuantizeAttention
from bitstill.quant.inputs import QuantizeInput as QuantizeInput
from bitstill.quant.lsq import LearnedStep as LearnedStep
from bitstill.quant.points import Points as Points
from bitstill.quant.quantized import Plane as Plane
from bitstill.quant.quantized import Quantized as Quantized
from bitstill.quant.rules import Compression as Compression
from bitstill.quant.rules import Prune as Prune
from bitstill.quant.split import SplitBinary as SplitBinary
from bitstill.quant.ternary import Ternary as Ternary
from bitstill.quant.uniform import Uniform as Uniform
