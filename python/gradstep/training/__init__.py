"""Mini-batches, and a training loop that stops for a reason and says which."""

from .history import Epoch, History
from .loop import train
from .minibatches import batches

__all__ = ["Epoch", "History", "batches", "train"]
