"""The loop of torchvision's reference script for classification, which is in no package; a peer in benchmarks/peers.py.

As there: pictures in colour, a resized random crop, a flip, SGD with momentum, float32, workers that are started anew
for every epoch, and loss and accuracy read at every step. Not as there: no arguments, no validation, no checkpoints.

`python -m benchmarks.reference FOLDER BACKBONE SIZE BATCH EPOCHS` prints seconds a step of every epoch but the first.
"""

import json
import sys
import time

import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms


def main(folder: str, backbone: str, size: int, batch: int, epochs: int) -> list[float]:
    """Trains and returns the seconds of a step, an epoch at a time."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    dataset = torchvision.datasets.ImageFolder(folder, transform)
    # the script takes the last batch, too; without it, a step is one of a whole batch, as it is of the other peers
    loader = DataLoader(dataset, batch, sampler=RandomSampler(dataset), num_workers=2, drop_last=True)
    model = torchvision.models.get_model(backbone, num_classes=len(dataset.classes))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    found = []
    for _ in range(epochs):
        model.train()
        start, followed = time.perf_counter(), []
        for image, target in loader:
            output = model(image)
            loss = criterion(output, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            accuracy = (output.argmax(1) == target).float().mean()
            followed.append((loss.item(), accuracy.item()))
        found.append((time.perf_counter() - start) / len(followed))
    return found[1:]


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))))
