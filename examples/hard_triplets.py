"""Trains an embedding of digits on triplets: random negatives first, then the hardest of the mini-batch.

This is the schedule of Wang and Gupta (ICCV 2015). `hard_negatives` is the line that mining adds.

python examples/hard_triplets.py [--steps 200] [--random-steps 60]     # --random-steps 200: no mining
python examples/hard_triplets.py --miner BatchHardMiner                # of pytorch-metric-learning
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import normalize

from ohem import hard_negatives, triplet_losses

NEGATIVES = 4  # of each pair, as in the publication
MARGIN = 0.5
BATCH = 100


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns images (N, 64) and labels (N,) of 400 digits to train on, and of the others to test on."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images, labels = torch.tensor(data.data, dtype=torch.float32)[order] / 16, torch.tensor(data.target)[order]
    return images[:400], labels[:400], images[400:], labels[400:]


def make_pairs(labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns the indices of `BATCH` anchors, and of a positive of the same label for each."""
    anchors = torch.randperm(len(labels), generator=rng)[:BATCH]
    same = (labels[anchors][:, None] == labels).float()
    same[torch.arange(BATCH), anchors] = 0
    return anchors, torch.multinomial(same, 1, generator=rng).squeeze(1)


def mine(name: str, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (anchors, positives, negatives) that a miner of pytorch-metric-learning chooses in a mini-batch."""
    from pytorch_metric_learning import distances, miners

    options = {"margin": MARGIN} if name == "TripletMarginMiner" else {}
    chosen: tuple[Tensor, Tensor, Tensor] = getattr(miners, name)(distance=distances.CosineSimilarity(), **options)(
        embeddings, labels
    )
    return chosen


def main(steps: int = 200, random_steps: int = 60, miner: str | None = None, seed: int = 0) -> float:
    """Trains for `steps` steps, and returns the share of test digits whose nearest training digit has their label."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    images, labels, test_images, test_labels = digits()
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(steps):
        anchors, positives = make_pairs(labels, rng)
        own, near = model(images[anchors]), model(images[positives])
        allowed = labels[anchors][:, None] != labels[positives]  # negatives are among the other pairs of the mini-batch
        if step < random_steps:
            negatives = near[torch.multinomial(allowed.float(), NEGATIVES, generator=rng)]
        elif miner is None:
            negatives = near[hard_negatives(own, near, near, NEGATIVES, allowed, MARGIN)]
        else:
            embeddings = torch.cat([own, near])
            of_anchors, of_positives, chosen = mine(miner, embeddings, labels[torch.cat([anchors, positives])])
            own, near, negatives = embeddings[of_anchors], embeddings[of_positives], embeddings[chosen][:, None]
        losses = triplet_losses(own, near, negatives, MARGIN)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        if step % 40 == 0 or step == steps - 1:
            print(f"step {step}: loss {losses.mean():.3f}, {(losses > 0).float().mean():.0%} of the triplets violate")
    with torch.no_grad():
        similar = normalize(model(test_images)) @ normalize(model(images)).T
    right = float((labels[similar.argmax(dim=1)] == test_labels).float().mean())
    print(f"{right:.1%} of the test digits are nearest to a training digit of their label")
    return right


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--random-steps", type=int, default=60)
    parser.add_argument("--miner", choices=["BatchHardMiner", "BatchEasyHardMiner", "TripletMarginMiner"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    main(options.steps, options.random_steps, options.miner, options.seed)
