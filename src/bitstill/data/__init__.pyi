"""Tasks, the splits they hold, and how text, corpora and variants of texts are read."""

from bitstill.data.augmentation import Augmentation as Augmentation
from bitstill.data.augmentation import Variants as Variants
from bitstill.data.corpus import Corpus as Corpus
from bitstill.data.objective import DetailTable as DetailTable
from bitstill.data.objective import Objective as Objective
from bitstill.data.objectives.classification import Classification as Classification
from bitstill.data.objectives.multi_label import MultiLabel as MultiLabel
from bitstill.data.objectives.regression import Regression as Regression
from bitstill.data.task import Batch as Batch
from bitstill.data.task import Preprocessor as Preprocessor
from bitstill.data.task import Split as Split
from bitstill.data.task import Task as Task
from bitstill.data.task import predict as predict
from bitstill.data.task import with_class_weights as with_class_weights
from bitstill.data.text import TextOptions as TextOptions
