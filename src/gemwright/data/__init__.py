"""Training data: files to records, records to documents of ids with a mask, documents to packed batches."""

from gemwright.data.dataset import Dataset, Statistics, open_dataset
from gemwright.data.packing import Batch, Batches, batches

__all__ = ["Batch", "Batches", "Dataset", "Statistics", "batches", "open_dataset"]
