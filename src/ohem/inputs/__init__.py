"""A recipe becomes the images, targets and proposals that a detector takes."""
