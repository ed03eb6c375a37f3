"""Data sets: pictures, their annotations, and the transforms that keep boxes and pixels together."""
