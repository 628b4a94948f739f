"""Models from outside the repository: any `nn.Module` that gives logits (n, c) for images (n, C, H, W) or for vectors (n, features)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call  # pyright: ignore[reportUnknownVariableType]

from fl_sim.model.architectures import Shape, models
from fl_sim.model.vectors import parameter_places, trained_parameters
from fl_sim.outside_code import changed_settings, error_words, outside_call, placed, settings_now, with_place
from fl_sim.registry import OutsideError
from fl_sim.rng.streams import seeded_global_generators, torch_stream


class ModelError(ValueError):
    """A model cannot be used. The message is one sentence, with the file and the line if an outside model raised."""


def build_outside(name: str, options: Mapping[str, Any], *, image_shape: Shape, num_classes: int, seed: int) -> nn.Module:
    """The module of an outside `model.name`, on the CPU in train mode, with its own initialisation.

    The global generators are seeded from the stream `(seed, "model")` meanwhile, so the same seed gives the same parameters. The module is
    tried with a batch of two images. If it fails, it is tried with two vectors, and from then on a hook flattens its inputs.
    Raises ModelError if it cannot be built, or cannot be trained and evaluated as a run does.
    """
    try:
        thing: Any = models.find(name)  # what it returns is checked below
    except OutsideError as error:
        raise ModelError(f"cannot load model.name = {name!r}: {error}") from error
    except KeyError:
        raise ModelError(models.problem(name)) from None

    def not_built(error: BaseException) -> Exception:
        return failure(name, "could not be built", error)

    def not_usable(error: BaseException) -> Exception:
        return ModelError(placed(str(error), thing)) if isinstance(error, ModelError) else failure(name, "cannot be used", error)

    with seeded_global_generators(seed, "model"):
        with outside_call(not_built):
            module = thing(image_shape, num_classes, **options)
        if not isinstance(module, nn.Module):
            raise ModelError(f"expected {with_place(f'model.name = {name!r}', thing)} to make an nn.Module, got {type(module).__name__}")
        with outside_call(not_usable):
            settings = settings_now()
            _find_input_form(name, module.eval(), image_shape, num_classes)
            _check_state(name, module)
            _copy_inputs_if_written(module, image_shape)
            _check_repeatable(name, module, image_shape)
            if changed := changed_settings(settings):
                raise ModelError(f"model.name = {name!r} changes a setting of the whole process when it is called: {', '.join(changed)}")
    return module.train()


def failure(name: str, what: str, error: BaseException) -> ModelError:
    """A ModelError that says what a model could not do, and the error that it raised."""
    return ModelError(f"model.name = {name!r} {what}: {_words(name, error)}")


def _words(name: str, error: BaseException) -> str:
    thing = None
    with contextlib.suppress(KeyError, OutsideError):
        thing = models.find(name)
    return error_words(error, thing)


def _find_input_form(name: str, module: nn.Module, image_shape: Shape, num_classes: int) -> None:
    """Add a hook that flattens the inputs if the module takes vectors but no images. Raises ModelError if it takes neither."""
    images, reasons = torch.zeros(2, *image_shape), list[str]()
    for inputs in (images, images.flatten(1)):
        try:
            with torch.no_grad():
                logits = module(inputs)
        except Exception as error:
            reasons.append(f"{tuple(inputs.shape)}: {_words(name, error)}")
            continue
        if isinstance(logits, Tensor) and logits.shape == (2, num_classes) and logits.dtype == torch.float32:
            if inputs is not images:
                module.register_forward_pre_hook(_flatten_inputs)
            return
        output = f"{logits.dtype} of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        reasons.append(f"{tuple(inputs.shape)}: {output}")
    raise ModelError(
        f"expected model.name = {name!r} to give float32 logits (n, {num_classes}) for images (n, {', '.join(map(str, image_shape))}) or "
        f"vectors (n, {prod(image_shape)}), got for {reasons[0]}; for {reasons[1]}"
    )


def _flatten_inputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A forward pre-hook: inputs (n, C, H, W) become (n, features). A wrapper module would change the names of the parameters."""
    return (inputs[0].flatten(1), *inputs[1:])


def _copy_inputs_if_written(module: nn.Module, image_shape: Shape) -> None:
    """Add a hook that copies the inputs if the module writes into them: they are the test set, which is used in every evaluation."""
    inputs = torch.randn(2, *image_shape, generator=torch_stream(0, "trial"))
    before = inputs.clone()
    module(inputs)  # with gradients, so that a model shows that it turns them off
    if not torch.equal(inputs, before):
        module.register_forward_pre_hook(_copy_inputs, prepend=True)


def _copy_inputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].clone(), *inputs[1:])


def _check_state(name: str, module: nn.Module) -> None:
    """Raises ModelError unless all parameters are float32, at least one is trained, and float32 can hold every buffer exactly."""
    for key, parameter in module.named_parameters():
        if parameter.is_meta:
            raise ModelError(f"expected the parameters of model.name = {name!r} to have values, got {key!r} on the meta device")
        if parameter.dtype != torch.float32:
            raise ModelError(f"expected the parameters of model.name = {name!r} to be float32, got {parameter.dtype} in {key!r}")
    if not trained_parameters(module):
        raise ModelError(f"expected model.name = {name!r} to have a parameter that requires a gradient, got none")
    for key, buffer in module.named_buffers():
        if not buffer.is_floating_point() and not torch.equal(buffer, buffer.to(torch.float32).to(buffer.dtype)):
            raise ModelError(
                f"expected the buffers of model.name = {name!r} to be floating-point, or numbers that float32 holds exactly, got others of "
                f"{buffer.dtype} in {key!r}"
            )


def _check_repeatable(name: str, module: nn.Module, image_shape: Shape) -> None:
    """Raises ModelError unless in eval mode, as in the rounds, the same inputs give the same logits and no buffer changes."""
    inputs = torch.randn(2, *image_shape, generator=torch_stream(0, "trial"))
    trained = trained_parameters(module)
    parameters = {place: trained[key].detach() for place, key in parameter_places(module).items()}
    before = [buffer.clone() for buffer in module.buffers()]

    def logits() -> Tensor:
        with torch.no_grad():
            return functional_call(module, parameters, (inputs,), tie_weights=False)

    try:
        with seeded_global_generators(0, "trial"):
            first, second = logits(), logits()
    except Exception as error:
        raise failure(name, "failed on a batch of random images", error) from error
    if not bool(torch.isfinite(first).all()):
        raise ModelError(f"expected model.name = {name!r} to give finite logits for random images, got NaN or infinity")
    rule = "the federated rounds use eval mode and must be repeatable"
    for (key, buffer), old in zip(module.named_buffers(), before, strict=True):
        if not torch.equal(buffer, old):
            raise ModelError(f"model.name = {name!r} changes its buffer {key!r} in eval mode; {rule}")
    if not torch.allclose(first, second, equal_nan=True):
        raise ModelError(f"model.name = {name!r} gives other logits the second time in eval mode (a dropout that is always on?); {rule}")
