"""The ground truth of images, whatever its format: one image, a table of many, and what was wrong with it."""
