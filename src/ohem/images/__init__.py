"""Image files, decoded upright to arrays by one reader for every command. Must not import torch: workers use it."""
