"""Losses: the loss of Fast R-CNN for each RoI, and mining for any criterion."""

from ohem.losses.detection import detection_loss, roi_losses, weighted
from ohem.losses.mined import OHEMLoss

__all__ = ["OHEMLoss", "detection_loss", "roi_losses", "weighted"]
