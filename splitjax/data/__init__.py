"""Data: pinned archives, tables of texts and of images, tokens, batches."""

from splitjax.data.archive import ArchiveError as ArchiveError
from splitjax.data.archive import cached as cached
from splitjax.data.archive import folder as folder
from splitjax.data.batches import Batches as Batches
from splitjax.data.benchmarks import has_folder as has_folder
from splitjax.data.benchmarks import load as load
from splitjax.data.buckets import bucket_lengths as bucket_lengths
from splitjax.data.buckets import padded_share as padded_share
from splitjax.data.files import read_file as read_file
from splitjax.data.files import read_texts as read_texts
from splitjax.data.image_table import ImageBatches as ImageBatches
from splitjax.data.image_table import ImageTable as ImageTable
from splitjax.data.images import load_images as load_images
from splitjax.data.stream import Stream as Stream
from splitjax.data.stream import Windows as Windows
from splitjax.data.stream import load_stream as load_stream
from splitjax.data.table import DataError as DataError
from splitjax.data.table import Table as Table
from splitjax.data.tokenize import Encoded as Encoded
from splitjax.data.tokenize import SequenceTooLong as SequenceTooLong
from splitjax.data.tokenize import Tokenizer as Tokenizer
