"""Diffusion: the mean over an image's own draws, against a loop over them."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers", reason="diffusers is not installed")

import wherefrom as wf
from tiny_unet import STEPS, WIDTH, conditioned_unet, images, scheduler, unet
from wherefrom.errors import CurvatureError, MissingExtraError, ModelError
from wherefrom.gradients.batches import Batch, stack_examples
from wherefrom.gradients.counter import key_of
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.fisher import default_fisher, true_gradients
from wherefrom.gradients.layers import select_layers
from wherefrom.gradients.objectives import objective_from

DRAWS = 4


def batch_of(inputs: Tensor, conditions: Tensor | None = None, name: str = "d") -> Batch:
    targets = torch.zeros(len(inputs)) if conditions is None else conditions
    return stack_examples(inputs, targets, [f"{name}{i}" for i in range(len(inputs))])


def nats(objective: wf.Diffusion, model: nn.Module, batch: Batch) -> Tensor:
    return objective.log_likelihood(objective.outputs(model, batch), batch.targets, batch)


def draws_of(objective: wf.Diffusion, image: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    """Timestep, noise and noisy image of each draw, read off what a model is given."""
    seen: list[tuple[Tensor, Tensor]] = []

    class Spy(nn.Module):
        def forward(self, noisy: Tensor, times: Tensor, **condition: Tensor) -> object:
            seen.append((noisy, times))
            return type("Output", (), {"sample": torch.zeros_like(noisy)})

    objective.outputs(Spy(), batch_of(image[None]))
    ((noisy, times),) = seen
    alphas = objective.scheduler.alphas_cumprod.double()
    found = []
    for time, x in zip(times.tolist(), noisy, strict=True):
        noise = (x - alphas[time].sqrt() * image) / (1 - alphas[time]).sqrt()
        found.append((time, noise, x))
    return found


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_equals_a_loop_over_draws(prediction: str) -> None:
    model, objective = unet(), wf.Diffusion(scheduler(prediction), draws=DRAWS)
    batch = batch_of(images(3))
    outputs = objective.outputs(model, batch)
    assert outputs.shape == (3, DRAWS, 1, 8, 8)
    assert objective.copies == DRAWS
    found = objective.log_likelihood(outputs, batch.targets, batch)
    for row, image in enumerate(images(3)):
        total = torch.zeros((), dtype=torch.float64)
        for time, noise, noisy in draws_of(objective, image):
            predicted = model(noisy[None], time).sample[0]
            share = scheduler().alphas_cumprod.double()[time]
            velocity = share.sqrt() * noise - (1 - share).sqrt() * image
            wanted = {"epsilon": noise, "v_prediction": velocity, "sample": image}[prediction]
            total -= 0.5 * (wanted - predicted).square().sum() / DRAWS
        torch.testing.assert_close(found[row], total, rtol=1e-6, atol=0)  # alphas are float32


def test_timesteps_are_one_of_each_part_of_the_schedule_and_noise_is_normal() -> None:
    objective = wf.Diffusion(scheduler(), draws=10)
    every = [draws_of(objective, image) for image in images(60)]
    for drawn in every:
        assert [time // (STEPS // 10) for time, _, _ in drawn] == list(range(10))
    assert len({time for drawn in every for time, _, _ in drawn}) == STEPS
    noise = torch.stack([noise for drawn in every for time, noise, _ in drawn if time > 4])
    assert abs(noise.mean()) < 4 / noise.numel() ** 0.5
    assert abs(noise.var() - 1) < 4 * (2 / noise.numel()) ** 0.5
    flat = noise.flatten(1) / 8
    assert (flat @ flat.T - torch.eye(len(flat))).abs().max() < 0.8, "draws share their noise"


def test_more_draws_than_steps_stay_within_the_schedule() -> None:
    drawn = draws_of(wf.Diffusion(scheduler(), draws=120), images(1)[0])
    times = [time for time, _, _ in drawn]
    assert times == sorted(times)
    assert {0, STEPS - 1} <= set(times) <= set(range(STEPS))


def test_a_gradient_is_the_images_own() -> None:
    model, objective = unet(), wf.Diffusion(scheduler(), draws=DRAWS)
    x = images()
    x[3] = x[1]

    def both(batch: Batch) -> tuple[Tensor, Tensor]:
        outputs = objective.outputs(model, batch).detach()
        return objective.differentiate(outputs, batch.targets, batch)

    value, gradient = both(batch_of(x))
    again = both(batch_of(x, name="other"))
    assert torch.equal(again[0], value)
    assert torch.equal(again[1], gradient)
    assert torch.equal(value[3], value[1])
    turned = both(batch_of(x.flip(0)))
    torch.testing.assert_close(turned[1].flip(0), gradient, rtol=1e-9, atol=1e-12)
    for row in range(len(x)):
        alone = both(batch_of(x[row : row + 1], name="query"))
        torch.testing.assert_close(alone[0][0], value[row], rtol=1e-12, atol=0)
        torch.testing.assert_close(alone[1][0], gradient[row], rtol=1e-9, atol=1e-12)


def test_draws_are_the_same_bits_alone_and_together() -> None:
    objective = wf.Diffusion(scheduler(), draws=DRAWS)
    noise = objective._draws(batch_of(images()))[1].reshape(5, DRAWS, 1, 8, 8)
    for row in range(5):
        single = objective._draws(batch_of(images()[row : row + 1], name="q"))[1]
        assert torch.equal(single, noise[row])
    as_floats = objective._draws(batch_of(images().float()))[2]
    precise = objective._draws(batch_of(images().float().double()))[2]
    assert torch.equal(as_floats, precise), "the precision of an image is not its content"
    other = wf.Diffusion(scheduler(), draws=DRAWS, seed=1)._draws(batch_of(images()))
    assert not torch.equal(other[1].reshape(noise.shape), noise)
    assert not torch.equal(other[2], objective._draws(batch_of(images()))[2])


def test_layer_gradients_equal_autograd() -> None:
    model, objective = unet(), wf.Diffusion(scheduler(), draws=DRAWS)
    batch = batch_of(images(3))
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "attent" in n]
    names += ["time_embedding.linear_2", "down_blocks.0.resnets.0.time_emb_proj", "conv_out"]
    extractor = GradientExtractor(model, objective, select_layers(model, names))
    found: dict[str, Tensor] = {}

    def keep(pair: LayerPair) -> None:
        gradient = torch.einsum("bto,bti->boi", pair.deltas, pair.activations)
        found[extractor.layers[pair.layer].name] = gradient

    with extractor.session():
        true_gradients(extractor, batch, keep)
    assert sorted(found) == sorted(names)
    for row in range(3):
        single = batch_of(images(3)[row : row + 1])
        weights = [model.get_submodule(name).weight for name in names]
        expected = torch.autograd.grad(nats(objective, model, single).sum(), weights)
        for name, weight in zip(names, expected, strict=True):
            ours = found[name][row, :, : weight[0].numel()].reshape(weight.shape)
            assert weight.abs().max() > 1e-9
            torch.testing.assert_close(ours, weight, rtol=1e-8, atol=1e-11)


def test_sampled_gradients_make_the_gauss_newton_of_the_mean() -> None:
    objective = wf.Diffusion(scheduler(), draws=DRAWS)
    batch = batch_of(images(1))
    outputs = torch.zeros(1, DRAWS, 1, 8, 8, dtype=torch.float64)

    def loss(given: Tensor) -> Tensor:
        return -objective.log_likelihood(given, batch.targets, batch).sum()

    curvature = torch.autograd.functional.hessian(loss, outputs).reshape(256, 256)
    torch.testing.assert_close(curvature, torch.eye(256).double() / DRAWS)
    count = 4000
    many = Batch(batch.inputs, batch.targets, ("d",) * count, np.arange(count, dtype=np.uint64))
    drawn = objective.sampled_gradient(outputs.expand(count, -1, -1, -1, -1), many, key_of(0, 0))
    flat = drawn.reshape(count, -1)
    covariance = flat.T @ flat / count
    assert covariance.diagonal().mean().item() == pytest.approx(1 / DRAWS, rel=0.01)
    off = covariance - covariance.diagonal().diag()
    assert off.abs().max() < 6 / DRAWS / count**0.5
    with pytest.raises(CurvatureError, match="use fisher='sampled'"):
        next(objective.expected_gradients(outputs, batch))


def test_sampled_is_the_default() -> None:
    model = unet()
    layers = select_layers(model, ["time_embedding.linear_2"])
    extractor = GradientExtractor(model, wf.Diffusion(scheduler(), draws=2), layers)
    assert default_fisher(extractor, batch_of(images(1))) == "sampled"


def test_conditions_are_given_to_every_draw() -> None:
    x, generator = images(3), torch.Generator().manual_seed(9)
    states = torch.randn(3, 2, WIDTH, dtype=torch.float64, generator=generator)
    labels = torch.tensor([0, 2, 1])
    for model, condition, given in (
        (conditioned_unet(), "encoder_hidden_states", states),
        (unet(num_class_embeds=3), "class_labels", labels),
    ):
        objective = wf.Diffusion(scheduler(), draws=DRAWS, condition=condition)
        with torch.no_grad():
            found = nats(objective, model, batch_of(x, given))
            for row in range(3):
                total = 0.0
                for time, noise, noisy in draws_of(objective, x[row]):
                    named = {condition: given[row : row + 1]}
                    predicted = model(noisy[None], time, **named).sample[0]
                    total -= 0.5 * float((noise - predicted).square().sum()) / DRAWS
                assert float(found[row]) == pytest.approx(total, rel=1e-6)
            assert not torch.allclose(nats(objective, model, batch_of(x, given.flip(0))), found)


def test_an_index_can_make_it_again() -> None:
    objective = wf.Diffusion(scheduler("v_prediction"), draws=3, seed=5, condition="class_labels")
    recorded = json.loads(json.dumps(objective.options()))
    again = objective_from("diffusion", recorded)
    assert isinstance(again, wf.Diffusion)
    assert again.options() == objective.options()
    assert torch.equal(again.scheduler.alphas_cumprod, objective.scheduler.alphas_cumprod)
    for first, second in zip(
        again._draws(batch_of(images())), objective._draws(batch_of(images())), strict=True
    ):
        assert torch.equal(first, second)


def test_making_it_again_wants_diffusers_and_its_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    options = dict(wf.Diffusion(scheduler()).options())
    for name in ("UNet2DModel", "NoSuchScheduler"):
        with pytest.raises(ModelError, match=f"has no scheduler '{name}'"):
            objective_from("diffusion", {**options, "scheduler": name})
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'wherefrom\[diffusion\]'"):
        objective_from("diffusion", options)


def test_bad_arguments_are_refused() -> None:
    from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler

    for draws in (0, -2):
        with pytest.raises(ModelError, match="at least 1"):
            wf.Diffusion(scheduler(), draws=draws)
    with pytest.raises(ModelError, match="'none', 'class_labels', 'encoder_hidden_states'"):
        wf.Diffusion(scheduler(), condition="text")  # type: ignore[arg-type]
    for sampler in (EulerDiscreteScheduler(), FlowMatchEulerDiscreteScheduler(), None):
        with pytest.raises(ModelError, match=r"DDPMScheduler.from_config\(scheduler.config\)"):
            wf.Diffusion(sampler)
    with pytest.raises(ModelError, match="has no get_velocity"):
        wf.Diffusion(PNDMScheduler(prediction_type="v_prediction"))
    other = scheduler()
    other.register_to_config(prediction_type="flow")
    with pytest.raises(ModelError, match="prediction_type='flow' is not supported"):
        wf.Diffusion(other)


def test_models_and_images_that_do_not_fit_are_refused() -> None:
    objective = wf.Diffusion(scheduler(), draws=2)
    with pytest.raises(ModelError, match=r"images are of type torch\.uint8"):
        objective.outputs(unet(), batch_of(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)))
    with pytest.raises(ModelError, match=r"cannot be called as .* condition='none'"):
        objective.outputs(conditioned_unet(), batch_of(images(1)))

    class Doubled(nn.Module):
        def forward(self, noisy: Tensor, times: Tensor) -> object:
            return type("Output", (), {"sample": torch.cat([noisy, noisy], 1)})

    with pytest.raises(ModelError, match=r"Doubled returned shape \[2, 2, 8, 8\] for noisy"):
        objective.outputs(Doubled(), batch_of(images(1)))
    with pytest.raises(ModelError, match=r"Sequential cannot be called as a diffusers UNet"):
        objective.outputs(nn.Sequential(), batch_of(images(1)))
    broken = unet()
    with torch.no_grad():
        broken.conv_out.bias.fill_(float("nan"))
    batch = batch_of(images(1))
    with pytest.raises(ModelError, match="document 'd0' is not finite"):
        objective.sampled_gradient(objective.outputs(broken, batch).detach(), batch, key_of(0, 0))
