"""Arrays that carry tensors in Flower messages without copying."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord


class TensorArray(Array):
    """A Flower `Array` that keeps its ndarray and computes the `np.save` bytes only when `data` is read.

    Flower's own `Array` serialises at construction; between processes of one machine that costs several copies of the model per message.
    This one pickles as the plain ndarray (out of band, so Ray's object store maps it into memory), and is an ordinary `Array` to
    everything that reads `data`.
    """

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self.__dict__.update(values=values, dtype=str(values.dtype), shape=tuple(values.shape), stype="numpy.ndarray")

    def __getattr__(self, name: str) -> Any:
        if name != "data":
            raise AttributeError(name)
        buffer = BytesIO()
        np.save(buffer, self.__dict__["values"], allow_pickle=False)
        self.__dict__["data"] = buffer.getvalue()
        return self.__dict__["data"]

    def numpy(self) -> npt.NDArray[Any]:
        return self.__dict__["values"]

    def deflate(self) -> bytes:
        """As an ordinary `Array`, because the name of the class is part of Flower's wire format."""
        return Array(self.dtype, self.shape, self.stype, self.data).deflate()

    def __reduce__(self) -> tuple[Any, ...]:
        return TensorArray, (self.__dict__["values"],)


def to_record(tensors: dict[str, torch.Tensor]) -> ArrayRecord:
    """Named tensors as a Flower `ArrayRecord` that shares their CPU memory."""
    return array_record({name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()})


def array_record(arrays: Mapping[str, npt.NDArray[Any]]) -> ArrayRecord:
    """Named ndarrays as an `ArrayRecord`. Filled item by item, because the constructor would copy each array into bytes."""
    record = ArrayRecord()
    for name, values in arrays.items():
        record[name] = TensorArray(values)
    return record


def from_record(record: ArrayRecord, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of a Flower `ArrayRecord`. Never write into them: their memory may be shared."""
    return {name: as_tensor(array.numpy()).to(device) for name, array in record.items()}


def as_tensor(values: npt.NDArray[Any]) -> torch.Tensor:
    """An array as a tensor that shares its memory, unless it is read-only."""
    # torch.from_numpy warns about a read-only array, as Ray's object store gives; torch.frombuffer would too.
    return torch.from_numpy(values if values.flags.writeable else values.copy())
