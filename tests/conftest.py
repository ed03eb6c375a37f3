"""Settings of every test: few threads, since two processes of many threads each crawl (see CONTRIBUTING.md)."""

import os

import torch
from hypothesis import settings

torch.set_num_threads(1 if {"PYTEST_XDIST_WORKER", "OMP_NUM_THREADS"} & os.environ.keys() else 2)
settings.register_profile("ohem", deadline=None, max_examples=50)
settings.load_profile("ohem")
