"""Steps as graphs, against the same steps without, on a stand-in for CUDA's graphs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn

from osteo import Classifier, KneeDataModule
from osteo.config import AugmentConfig
from osteo.errors import UserError
from osteo.graphs import WARM_UP, Graphed
from osteo.training.augment import make_augmentation
from osteo.training.callbacks import ExponentialMovingAverage, Unfreezing
from osteo.training.draws import Mixup
from tests.graphs import graphs_on_the_cpu  # noqa: F401 - a fixture
from tests.test_lightning import QUIET

NETWORK = {"backbone": "test_resnet", "image_size": 64, "drop_rate": 0.3}
Result = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]


def trained(knees: Path, graph: Any, name: str = "online", *, mixup: float = 0.0, **trainer: Any) -> Result:
    """Weights, metrics and the optimiser's state after three epochs, whose last batch is smaller than others."""
    seed_everything(0, verbose=False)
    augment = make_augmentation(AugmentConfig(name=name), 0, 64)
    module = Classifier(NETWORK, {"lr": 3e-3, "schedule": "cosine", "warmup": 1}, image_size=64)
    module.graph = graph
    data = KneeDataModule(
        knees, image_size=64, batch_size=6, augment=augment, variants=augment.variants,
        mix=Mixup(mixup) if mixup else None, graph=graph is not False,
    )  # fmt: skip
    loop = Trainer(max_epochs=3, **QUIET, **trainer)
    loop.fit(module, data)
    return module.state_dict(), dict(loop.callback_metrics), loop.optimizers[0].state_dict()["state"]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("online", {}),
        pytest.param("paper", {}, marks=pytest.mark.slow),
        ("none", {"mixup": 0.4}),
        pytest.param("online", {"precision": "bf16-mixed", "gradient_clip_val": 0.1}, marks=pytest.mark.slow),
        pytest.param("online", {"callbacks": [lambda: ExponentialMovingAverage(0.9)]}, marks=pytest.mark.slow),
        pytest.param("online", {"callbacks": [lambda: Unfreezing(1)]}, marks=pytest.mark.slow),
    ],
)
def test_a_training_of_graphs_is_the_one_without(
    graphs_on_the_cpu: list[int],  # noqa: F811
    knees: Path,
    name: str,
    settings: dict[str, Any],
) -> None:
    def train(graph: Any) -> Result:
        made = {"callbacks": [make() for make in settings.get("callbacks", [])]}
        return trained(knees, graph, name, **settings | made)

    weights, metrics, state = train(False)
    assert graphs_on_the_cpu == []
    captured_weights, captured_metrics, captured_state = train(True)
    assert len(graphs_on_the_cpu) >= 2  # the batch, and the step
    assert max(graphs_on_the_cpu) > 100
    assert captured_metrics.keys() == metrics.keys()
    for one, other in ((weights, captured_weights), (metrics, captured_metrics)):
        for key, value in one.items():
            torch.testing.assert_close(
                other[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
            )
    assert captured_state.keys() == state.keys()


def test_the_gradients_of_two_shapes_do_not_mix(graphs_on_the_cpu: list[int]) -> None:  # noqa: F811
    layer = nn.Linear(3, 1)

    def learn(given: Tensor) -> tuple[Tensor]:
        loss = layer(given).square().mean()
        loss.backward()
        return (loss.detach(),)

    graphed = Graphed(learn, layer, is_required=True)
    for turn in range(3 * WARM_UP):
        for size in (4, 2):
            given = torch.randn(size, 3, generator=torch.Generator().manual_seed(turn))
            [loss] = graphed(given)
            wanted = torch.autograd.grad(expected := layer(given).square().mean(), list(layer.parameters()))
            assert torch.allclose(loss, expected)
            assert all(torch.allclose(p.grad, g) for p, g in zip(layer.parameters(), wanted, strict=True))  # type: ignore[arg-type]
    assert len(graphs_on_the_cpu) == 2


@pytest.mark.parametrize("fault", ["reads", "differs"])
def test_what_cannot_be_captured_runs_as_it_is(
    graphs_on_the_cpu: list[int],  # noqa: F811
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    calls = 0

    def function(given: Tensor) -> tuple[Tensor]:
        nonlocal calls
        calls += 1
        return (given * given.sum().item() if fault == "reads" else given * (1 + (calls == WARM_UP + 2)),)

    graphed = Graphed(function)
    for turn in range(2 * WARM_UP):
        given = torch.full((2,), 1.0 + turn)
        [made] = graphed(given)
        assert torch.equal(made, given * given.sum() if fault == "reads" else given)
    assert caplog.text.count("a step does not run as a CUDA graph") == 1
    calls, graphed = 0, Graphed(function, is_required=True)
    for _ in range(WARM_UP):
        graphed(torch.ones(2))
    with pytest.raises(UserError, match=r"trainer\.graph=true, but a step cannot be a CUDA graph \("):
        graphed(torch.ones(2))


def test_a_graph_that_is_required_where_none_is_possible_is_an_error(knees: Path) -> None:
    with pytest.raises(
        UserError, match=r"trainer\.graph=true needs a CUDA graph, but the device is cpu; use trainer\."
    ):
        trained(knees, True)
