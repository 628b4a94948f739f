"""The arrays that carry tensors in Flower messages without copying."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord


class TensorArray(Array):
    """A Flower `Array` that holds its values and writes the `np.save` bytes only when somebody asks for them.

    Flower's own `Array` serialises at construction; between processes of one machine that costs several copies of the
    model for each message. This one pickles as the plain ndarray (out of band, so Ray's object store maps it), and is an
    ordinary `Array` to everything that reads `data`.
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
        """As an ordinary `Array`: the class's name is part of Flower's wire format."""
        return Array(self.dtype, self.shape, self.stype, self.data).deflate()

    def __reduce__(self) -> tuple[Any, ...]:
        return TensorArray, (self.__dict__["values"],)


def to_record(tensors: dict[str, torch.Tensor]) -> ArrayRecord:
    """Named tensors as a Flower `ArrayRecord` that shares their CPU memory."""
    return array_record({name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()})


def array_record(arrays: Mapping[str, npt.NDArray[Any]]) -> ArrayRecord:
    """Named ndarrays as an `ArrayRecord`, filled item by item: its constructor would copy each array into bytes."""
    record = ArrayRecord()
    for name, values in arrays.items():
        record[name] = TensorArray(values)
    return record


def from_record(record: ArrayRecord, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of a Flower `ArrayRecord`; never write into them, they may be shared memory."""
    return {name: as_tensor(array.numpy()).to(device) for name, array in record.items()}


def as_tensor(values: npt.NDArray[Any]) -> torch.Tensor:
    """An array as a tensor that shares its memory, unless it is read-only."""
    # A read-only array (Ray's object store) makes torch.from_numpy warn; a view through ctypes-free frombuffer would too.
    return torch.from_numpy(values if values.flags.writeable else values.copy())
