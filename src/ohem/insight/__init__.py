"""What was mined, which errors a detector makes, and which annotations are suspect."""

from ohem.insight.suspects.scores import Suspect, audit

__all__ = ["Suspect", "audit"]
