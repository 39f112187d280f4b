"""Data sets, and the loader that keeps them on the device."""

from fastlnl.data.dataset import Batch, Dataset
from fastlnl.data.indexed import IndexedDataset
from fastlnl.data.loader import IndexedLoader
from fastlnl.data.readers import DATASETS, load_dataset
from fastlnl.data.text import text_dataset

__all__ = ["DATASETS", "Batch", "Dataset", "IndexedDataset", "IndexedLoader", "load_dataset", "text_dataset"]
