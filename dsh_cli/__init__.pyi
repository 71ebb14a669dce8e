from .analysis.classes import class_table as class_table
from .analysis.embedding import Projection as Projection
from .analysis.embedding import embed as embed
from .analysis.protocols import evaluate_run as evaluate_run
from .analysis.retrieval import evaluate as evaluate
from .analysis.retrieval import mean_average_precision as mean_average_precision
from .codes.bits import from_hex as from_hex
from .codes.bits import hamming as hamming
from .codes.bits import to_hex as to_hex
from .codes.bounds import class_distance_bound as class_distance_bound
from .codes.sets import CodeSet as CodeSet
from .config import TrainConfig as TrainConfig
from .data.inputs import encode as encode
from .data.inputs import encode_files as encode_files
from .data.splits import load_splits as load_splits
from .errors import DshError as DshError
from .index.index import Index as Index
from .neighbors import Finder as Finder
from .neighbors import split_database as split_database
from .runs.folders import load as load
from .runs.run import Run as Run
from .training.loop import train as train
from .training.terms import dsh_loss as dsh_loss

__all__: list[str]
