"""Training: data, optimiser, augmentation, and the skorch net that puts them together."""

from sklip.training.augmentation import RandomFlip, RandomShift
from sklip.training.muon import StiefelMuon

__all__ = ["RandomFlip", "RandomShift", "StiefelMuon"]
