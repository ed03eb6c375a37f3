"""A log of what was mined over a whole training: which boxes of which images, how hard they were, and how often."""

from ohem.mining_log.log import MiningLog, is_state
from ohem.mining_log.rows import COLUMNS, LoggedImage

__all__ = ["COLUMNS", "LoggedImage", "MiningLog", "is_state"]
