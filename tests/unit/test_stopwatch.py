"""How long the model itself took, of all that an evaluation does; its answers stay the same."""

import time

import pytest
import torch
from torch import Tensor
from toy import linear, toy_model

from raybench.core.types import Access
from raybench.runners.stopwatch import TimedModel

PAUSE_S = 0.05


class Slow(torch.autograd.Function):
    """The identity, which sleeps on its way there and twice as long on its way back."""

    @staticmethod
    def forward(images: Tensor) -> Tensor:
        time.sleep(PAUSE_S)
        return images.clone()

    @staticmethod
    def setup_context(ctx: object, inputs: object, output: object) -> None:
        return None

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        time.sleep(2 * PAUSE_S)
        return gradient


def slow_model() -> TimedModel:
    answer = linear()
    return TimedModel(toy_model(lambda images: answer(Slow.apply(images)), access=Access.GRADIENTS))


def gradient(model: TimedModel, images: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(model.logits(images).square().sum(), images)
    return found


def paused(model: TimedModel, times: float) -> bool:
    return model.seconds == pytest.approx(times * PAUSE_S, rel=0.2)


def test_forward_passes_count_and_nothing_else() -> None:
    model = slow_model()
    images = torch.rand(2, 1, 8, 8)
    for ask in (model.logits, model.probabilities, model.labels):
        ask(images)
        time.sleep(PAUSE_S)
    assert paused(model, 3)


def test_backward_passes_count_from_output_to_input() -> None:
    model = slow_model()
    images = torch.rand(2, 1, 8, 8, requires_grad=True)
    for step in range(1, 4):
        gradient(model, images)
        time.sleep(PAUSE_S)
        assert paused(model, 3 * step)


def test_several_passes_over_one_graph_count_each() -> None:
    model = slow_model()
    images = torch.rand(2, 1, 8, 8, requires_grad=True)
    logits = model.logits(images)
    for index in range(3):
        torch.autograd.grad(logits[:, index].sum(), images, retain_graph=True)
        time.sleep(PAUSE_S)
    assert paused(model, 1 + 3 * 2)


def test_a_pass_over_two_answers_counts_once() -> None:
    model = slow_model()
    images = torch.rand(2, 1, 8, 8, requires_grad=True)
    both = model.logits(images).sum() + model.logits(images + 0.0).sum()
    torch.autograd.grad(both, images)
    assert paused(model, 2 + 4)


def test_images_made_of_others_count_too() -> None:
    model = slow_model()
    change = torch.zeros(2, 1, 8, 8, requires_grad=True)
    torch.autograd.grad(model.logits(torch.rand(2, 1, 8, 8) + change).sum(), change)
    assert paused(model, 3)


def test_answers_and_gradients_are_the_models_own() -> None:
    function = linear(seed=3)
    plain = toy_model(function, access=Access.GRADIENTS)
    timed = TimedModel(toy_model(function, access=Access.GRADIENTS))
    images = torch.rand(4, 1, 8, 8, requires_grad=True)
    assert torch.equal(timed.logits(images), plain.logits(images))
    assert torch.equal(timed.probabilities(images), plain.probabilities(images))
    assert torch.equal(timed.labels(images), plain.labels(images))
    assert torch.equal(gradient(timed, images), gradient(TimedModel(plain), images))
    assert timed.info == plain.info
    assert timed.device == plain.device


def test_errors_pass_and_their_time_counts() -> None:
    def broken(images: Tensor) -> Tensor:
        time.sleep(PAUSE_S)
        raise ArithmeticError("poison")

    model = TimedModel(toy_model(broken))
    with pytest.raises(ArithmeticError):
        model.logits(torch.rand(1, 1, 8, 8))
    assert paused(model, 1)


def test_an_attack_that_steps_a_thousand_times_leaves_no_trail() -> None:
    """One hook for each tensor, however often it is asked about."""
    model = TimedModel(toy_model(linear(), access=Access.GRADIENTS))
    images = torch.rand(1, 1, 8, 8, requires_grad=True)
    for _ in range(1000):
        gradient(model, images)
    assert len(images._backward_hooks) == 1


@pytest.mark.gpu
def test_on_a_gpu_the_devices_clock_counts() -> None:
    """Calls return at once there; what counts is what the device was busy with."""
    load = torch.rand(4096, 4096, device="cuda")

    def function(images: Tensor) -> Tensor:
        answer = images.flatten(1)[:, :3]
        for _ in range(30):
            answer = answer + 0.0 * (load @ load)[0, 0]
        return answer

    plain = toy_model(function)
    plain.device = "cuda"
    model = TimedModel(plain)
    images = torch.rand(2, 1, 8, 8, device="cuda")
    for _ in range(2):  # the first round warms up
        model = TimedModel(plain)
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(5):
            model.logits(images)
        returned = time.perf_counter() - begun
        torch.cuda.synchronize()
        done = time.perf_counter() - begun
    assert returned < 0.5 * done
    assert model.seconds == pytest.approx(done, rel=0.2)
