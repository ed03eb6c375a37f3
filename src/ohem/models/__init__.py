"""A recipe becomes a detector: the paper's Fast R-CNN, or one of torchvision's."""
