"""Training: data, optimiser, augmentation, processes, and the skorch net that puts them together."""

from sklip.training.augmentation import RandomFlip, RandomShift
from sklip.training.muon import StiefelMuon
from sklip.training.parallel import data_parallel

__all__ = ["RandomFlip", "RandomShift", "StiefelMuon", "data_parallel"]
