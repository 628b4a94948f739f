"""Model and data of the app."""

from functools import lru_cache
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

from fl_sim.model.architectures import build_model


def new_model(config: Any) -> torch.nn.Module:
    shape = (1, int(config["pixels"]), int(config["pixels"]))
    return build_model(str(config["model"]), norm="group", image_shape=shape, num_classes=10, generator=torch.Generator())


@lru_cache
def dataset(root: str) -> MNIST:
    return MNIST(root, train=True, transform=ToTensor())


def load_data(partition: int, config: Any) -> DataLoader:
    data = dataset(str(config["data"]))
    share = len(data) // int(config["clients"])
    part = Subset(data, range(partition * share, (partition + 1) * share))
    return DataLoader(part, batch_size=int(config["batch-size"]), shuffle=True, drop_last=True)


def train(model: torch.nn.Module, loader: DataLoader, steps: int, rate: float, device: torch.device) -> float:
    criterion, optimizer = torch.nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=rate)
    model.train()
    running, done = 0.0, 0
    while done < steps:
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            running, done = running + loss.item(), done + 1
            if done == steps:
                break
    return running / steps
