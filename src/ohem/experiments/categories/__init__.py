"""The study by category that the paper leaves as future work: which classes gain from OHEM, and what they share."""
