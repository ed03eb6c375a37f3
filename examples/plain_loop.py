"""A plain training loop around a model that returns logits, as those of transformers do: mining is one line of it.

python examples/plain_loop.py [--steps 80]
"""

import argparse
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ohem import OHEMLoss


class Classifier(nn.Module):
    """Text classification in miniature: the mean of token embeddings, and a linear layer."""

    def __init__(self, vocabulary: int, num_labels: int) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(vocabulary, 32, mode="mean")
        self.classifier = nn.Linear(32, num_labels)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> SimpleNamespace:
        """`logits` (N, num_labels) of token ids (N, T)."""
        return SimpleNamespace(logits=self.classifier(self.embedding(input_ids)))


def make_batch(size: int, rng: torch.Generator) -> dict[str, Tensor]:
    """Sentences of 12 tokens; one in twenty holds token 7, which is what the rare label tells."""
    ids = torch.randint(8, 100, (size, 12), generator=rng)
    labels = (torch.rand(size, generator=rng) < 0.05).long()
    ids[labels == 1, 3] = 7
    return {"input_ids": ids, "labels": labels}


def main(steps: int) -> float:
    """Trains for `steps` steps; returns how many of the rare label are found."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    model = Classifier(vocabulary=100, num_labels=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    criterion = OHEMLoss(nn.CrossEntropyLoss(reduction="none"), keep=0.1, min_kept=8)

    model.train()
    for step in range(steps):
        batch = make_batch(256, rng)
        outputs = model(**batch)
        loss = criterion(outputs.logits, batch["labels"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == steps - 1:
            print({"step": step, "loss": round(loss.item(), 4), **criterion.mining})

    model.eval()
    batch = make_batch(2000, rng)
    rare = batch["labels"] == 1
    recall = (model(**batch).logits.argmax(dim=1)[rare] == 1).float().mean()
    print(f"recall of the rare label: {recall:.2f}")
    return float(recall)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=80)
    main(parser.parse_args().steps)
