"""The optimizer and the schedule of its learning rate (paper, section 5.1)."""

import torch
from torch import nn

from ohem.config.schema import SolverConfig


def build_optimizer(model: nn.Module, config: SolverConfig, *, fused: bool) -> torch.optim.SGD:
    """Makes SGD in which biases learn `bias_lr` times as fast as weights and do not decay (the authors' prototxt)."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if not name.endswith("bias")], "factor": 1.0},
        {"params": [p for name, p in trained if name.endswith("bias")], "factor": config.bias_lr, "weight_decay": 0.0},
    ]
    decay = config.weight_decay
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=decay, fused=fused)


def learning_rate(config: SolverConfig, step: int) -> float:
    """Returns the learning rate of weights at `step`: step decay with a linear warm-up."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    return config.lr * warm * config.gamma ** (step // config.decay_every)
