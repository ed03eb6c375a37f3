"""The evaluation of a run: detections in images, their scores, and the files of results."""
