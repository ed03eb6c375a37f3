"""What mining gives in the detectors of other frameworks: trainings with and without it."""
