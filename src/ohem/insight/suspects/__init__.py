"""`ohem audit`: suspect annotations, from detections of a detector that did not see them."""
