"""How far label memories of fewer bytes drift from float32 on a real run: `python benchmarks/storage_error.py`.

ALR trains a network on the digits with 40 % symmetric noise on a float32 memory. Memories of the other storages are
shown the same logits, batch by batch, and compared with it at the end. Writes benchmarks/results/storage_error.md.
"""

from pathlib import Path

import torch
from provenance import commit
from torch import Tensor

from fastlnl.data import IndexedLoader, load_dataset
from fastlnl.losses import ALR
from fastlnl.networks import build_network
from fastlnl.noise import apply_noise

RESULT = Path(__file__).parent / "results" / "storage_error.md"
STORAGES = ("bfloat16", "float16", "uint8", "topk:1", "topk:3", "topk:5")
EPOCHS, WARMUP, SEED = 60, 9, 0


def run() -> dict[str, Tensor]:
    """Rows (N, C) of every storage after the same run."""
    torch.manual_seed(SEED)
    data = load_dataset("digits")
    label = apply_noise("symmetric/exclusive:0.4", data, SEED).label
    network = build_network("mlp", data.image_shape, data.num_classes)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    loader = IndexedLoader(data.train_images, label, batch_size=128, mean=data.mean, std=data.std, seed=SEED)
    criteria = {
        storage: ALR(len(label), data.num_classes, label, momentum=0.7, warmup_epochs=WARMUP, storage=storage)
        for storage in ("float32", *STORAGES)
    }
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        for batch in loader:
            logits = network(batch.views[0])
            optimizer.zero_grad()
            criteria["float32"](logits, batch.label, batch.index).backward()
            optimizer.step()
            for storage in STORAGES:
                criteria[storage].refine(logits.detach(), batch.index, batch.label)
        schedule.step()
        for criterion in criteria.values():
            criterion.end_epoch()
    everybody = torch.arange(len(label))
    return {storage: criterion.memory.rows(everybody) for storage, criterion in criteria.items()}


def lines(rows: dict[str, Tensor]) -> list[str]:
    dense = rows.pop("float32")
    found = [
        f"# Label memories of fewer bytes against float32: digits, {EPOCHS} epochs of ALR, commit {commit()}",
        "",
        "All see the same logits. Distance is the sum of absolute differences of a row, at most 2.",
        "",
        "| storage | mean distance | largest | same class highest |",
        "|---|--:|--:|--:|",
    ]
    for storage, ours in rows.items():
        distance = (ours - dense).abs().sum(1)
        same = (ours.argmax(1) == dense.argmax(1)).double().mean()
        found.append(f"| {storage} | {distance.mean():.1e} | {distance.max():.1e} | {100 * same:.2f} % |")
    return found


if __name__ == "__main__":
    text = "\n".join(lines(run())) + "\n"
    RESULT.write_text(text)
    print(text, end="")
