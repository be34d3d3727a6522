"""Losses of a student against labels or a teacher, and the functions they are made of."""

from bitstill.losses.features import AttentionRelation as AttentionRelation
from bitstill.losses.features import AttentionScoreMSE as AttentionScoreMSE
from bitstill.losses.features import AttentionTransfer as AttentionTransfer
from bitstill.losses.features import FeatureMSE as FeatureMSE
from bitstill.losses.features import Pair as Pair
from bitstill.losses.layer_maps import head_pairs as head_pairs
from bitstill.losses.layer_maps import hidden_pairs as hidden_pairs
from bitstill.losses.layer_maps import score_pairs as score_pairs
from bitstill.losses.logits import KL as KL
from bitstill.losses.logits import CrossEntropy as CrossEntropy
from bitstill.losses.logits import MeanSquaredError as MeanSquaredError
from bitstill.losses.logits import SoftCrossEntropy as SoftCrossEntropy
from bitstill.losses.logits import kl_divergence as kl_divergence
from bitstill.losses.logits import soft_cross_entropy as soft_cross_entropy
from bitstill.losses.loss import Loss as Loss
from bitstill.losses.sigmoid import BinaryCrossEntropy as BinaryCrossEntropy
from bitstill.losses.sigmoid import BinaryKL as BinaryKL
from bitstill.losses.sigmoid import SoftBinaryCrossEntropy as SoftBinaryCrossEntropy
from bitstill.losses.taps import Output as Output
from bitstill.losses.taps import as_logits as as_logits
