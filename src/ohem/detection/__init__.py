"""The detector of the paper: backbones, the RoI network, the read-only pass, and detections."""
