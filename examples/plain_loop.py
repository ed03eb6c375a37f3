"""Trains a text classifier in a plain loop. `OHEMLoss` is the only line that mining adds.

The model returns an object with `logits`, as the models of transformers do.

python examples/plain_loop.py [--steps 80]
"""

import argparse
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ohem import OHEMLoss


class Classifier(nn.Module):
    """A small text classifier: the mean of token embeddings, and a linear layer."""

    def __init__(self, vocabulary: int, num_labels: int) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(vocabulary, 32, mode="mean")
        self.classifier = nn.Linear(32, num_labels)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> SimpleNamespace:
        """Returns `logits` (N, num_labels) of token ids (N, T)."""
        return SimpleNamespace(logits=self.classifier(self.embedding(input_ids)))


def make_batch(size: int, rng: torch.Generator) -> dict[str, Tensor]:
    """Makes sentences of 12 tokens. One in twenty has the rare label, 1, and contains token 7."""
    ids = torch.randint(8, 100, (size, 12), generator=rng)
    labels = (torch.rand(size, generator=rng) < 0.05).long()
    ids[labels == 1, 3] = 7
    return {"input_ids": ids, "labels": labels}


def main(steps: int) -> float:
    """Trains for `steps` steps, and returns the recall of the rare label."""
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
            mined = criterion.mining
            print(
                f"step {step}: {mined['kept']:.0f} of {mined['examples']:.0f} sentences kept, "
                f"mean loss {mined['loss_kept']:.4f} (all sentences: {mined['loss_all']:.4f})"
            )

    model.eval()
    batch = make_batch(2000, rng)
    rare = batch["labels"] == 1
    recall = (model(**batch).logits.argmax(dim=1)[rare] == 1).float().mean()
    print(f"recall of the rare label: {recall:.2f}")
    return float(recall)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=80, help="number of training steps")
    main(parser.parse_args().steps)
