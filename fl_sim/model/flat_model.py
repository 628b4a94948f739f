"""A model as pure functions of its flat parameter vector."""

from __future__ import annotations

import os
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad  # pyright: ignore[reportUnknownVariableType]

from fl_sim.model.architectures import is_plain
from fl_sim.model.vectors import load_buffers, parameter_places, trained_parameters
from fl_sim.outside_code import OutsideCodeError, end_if_forked, error_words, is_interrupt
from fl_sim.process_ends import ends_refused

# Measured: vmap over a model with such an operation (attention on a CPU) still takes only a tenth to a third of a loop's time.
warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented the batching rule")


class FlatModel:
    """Pure functions of `theta` (d,), made from an `nn.Module`: its frozen parameters are used, its trained ones are replaced by theta.

    Batch-norm statistics are the constant `buffers` (s,): the module runs in eval mode, see `fl_sim.model.architectures`. With `bfloat16`
    layers compute in that type where PyTorch's autocast does so; losses and gradients with respect to theta are float32 in any case.
    `plain`: the module consists only of layers that our own models have (`fl_sim.model.architectures.is_plain`).
    """

    def __init__(self, module: nn.Module, buffers: Tensor | None = None, *, bfloat16: bool = False) -> None:
        self.module, self.bfloat16, self.plain = module.eval(), bfloat16, is_plain(module)
        parameters = trained_parameters(module)
        self._names, self._places = list(parameters), parameter_places(module)
        self._shapes = [parameter.shape for parameter in parameters.values()]
        self._sizes = [parameter.numel() for parameter in parameters.values()]
        if buffers is not None and buffers.numel():
            load_buffers(module, buffers)

    @property
    def layout(self) -> dict[str, torch.Size]:
        """The shapes of the trained parameters by name, in the order of theta."""
        return dict(zip(self._names, self._shapes, strict=True))

    def _parameters(self, theta: Tensor) -> dict[str, Tensor]:
        """theta (d,) by the places of a module that it goes to."""
        parts = theta.split(self._sizes)
        values = {name: part.view(shape) for name, part, shape in zip(self._names, parts, self._shapes, strict=True)}
        return {place: values[name] for place, name in self._places.items()}

    def logits(self, theta: Tensor, inputs: Tensor) -> Tensor:
        """Scores (b, c) of inputs (b, C, H, W) under the model `theta` (d,). Raises OutsideCodeError if a model from outside raises."""
        return self._scores(self._parameters(theta), inputs)

    def _scores(self, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        """`logits` of a model whose parameters are given by their places."""
        if self.plain:
            return self._call(parameters, inputs)
        process = os.getpid()
        try:
            with ends_refused():
                return self._call(parameters, inputs)
        except torch.OutOfMemoryError:
            raise
        except BaseException as error:  # it may raise anything
            if is_interrupt(error):
                raise
            raise OutsideCodeError(f"the model raised: {error_words(error)}") from (None if isinstance(error, StopIteration) else error)
        finally:
            end_if_forked(process)

    def _call(self, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        if not self.bfloat16:
            return functional_call(self.module, parameters, (inputs,), tie_weights=False)
        with torch.autocast(inputs.device.type, torch.bfloat16, cache_enabled=False):  # its cache would keep tensors of torch.func alive
            return functional_call(self.module, parameters, (inputs,), tie_weights=False).to(next(iter(parameters.values())).dtype)

    def loss(self, theta: Tensor, inputs: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean cross-entropy, or `sum_j weights_j * cross-entropy_j` when weights (b,) are given. A scalar."""
        return self._mean_loss(self.logits(theta, inputs), labels, weights)

    @staticmethod
    def _mean_loss(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        if weights is None:
            return F.cross_entropy(logits, labels)
        return (F.cross_entropy(logits, labels, reduction="none") * weights).sum()

    def gradient(
        self, theta: Tensor, inputs: Tensor, labels: Tensor, weights: Tensor | None = None, *, out: Tensor | None = None
    ) -> Tensor:
        """The gradient (d,) of `loss` with respect to theta, written into `out` (d,) if that is given.

        With respect to each parameter, not to one flat leaf: so a large model's gradient is copied once instead of three times.
        """
        leaves = [part.view(shape).requires_grad_() for part, shape in zip(theta.detach().split(self._sizes), self._shapes, strict=True)]
        values = dict(zip(self._names, leaves, strict=True))
        loss = self._mean_loss(self._scores({place: values[name] for place, name in self._places.items()}, inputs), labels, weights)
        gradients = torch.autograd.grad(loss, leaves, materialize_grads=True, allow_unused=True)
        return torch.cat([gradient.flatten() for gradient in gradients], out=out)

    def logits_and_gradient(self, theta: Tensor, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (b, c) and the gradient (d,) of the mean cross-entropy, from one forward pass: the numbers of `logits` and `gradient`."""
        leaf = theta.detach().requires_grad_(True)
        logits = self.logits(leaf, inputs)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels), leaf)
        return logits.detach(), gradient

    def gradients(self, thetas: Tensor, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Per-client gradients, vectorised with `torch.func`.

        Args: thetas (d,) for all clients or (k, d) one per client; inputs (k, b, C, H, W); labels (k, b); weights (k, b).
        Returns: (k, d).
        """
        theta_dim = 0 if thetas.dim() == 2 else None
        return torch.vmap(grad(self.loss), in_dims=(theta_dim, 0, 0, 0))(thetas, inputs, labels, weights)

    @torch.no_grad()
    def examples(self, theta: Tensor, inputs: Tensor, labels: Tensor, batch: int = 200) -> tuple[Tensor, Tensor]:
        """For each of the inputs (e, C, H, W): its cross-entropy (e,), and whether its prediction is right, 1 or 0 (e,). In batches."""
        losses, predictions = self.predictions(theta, inputs, labels, batch)
        return losses, (predictions == labels).to(losses.dtype)

    @torch.no_grad()
    def predictions(self, theta: Tensor, inputs: Tensor, labels: Tensor, batch: int = 200) -> tuple[Tensor, Tensor]:
        """For each of the inputs (e, C, H, W): its cross-entropy (e,) and the predicted class, int64 (e,). In batches."""
        losses: list[Tensor] = []
        classes: list[Tensor] = []
        for start in range(0, len(labels), batch):
            logits = self.logits(theta, inputs[start : start + batch])
            losses.append(F.cross_entropy(logits, labels[start : start + batch], reduction="none"))
            classes.append(logits.argmax(dim=1))
        return torch.cat(losses), torch.cat(classes)

    def score(self, theta: Tensor, inputs: Tensor, labels: Tensor, batch: int = 200) -> tuple[float, float]:
        """Accuracy in percent and mean cross-entropy over inputs (e, C, H, W), in batches."""
        losses, hits = self.examples(theta, inputs, labels, batch)
        return 100.0 * int(hits.sum(dtype=torch.float64)) / len(labels), float(losses.mean(dtype=torch.float64))
