"""Label errors: planted ones, peers on the same detections, and the coefficients of `ohem.insight.calibration`."""
