"""The kinds of tasks, one file each."""

from bitstill.data.objectives.classification import Classification
from bitstill.data.objectives.mean_states import MeanStates
from bitstill.data.objectives.multi_label import MultiLabel
from bitstill.data.objectives.regression import Regression

__all__ = ["Classification", "MeanStates", "MultiLabel", "Regression"]
