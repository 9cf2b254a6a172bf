"""What a rollout has in the place of transitions that are none, and a loss must not look at."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gala_worker.algorithms.losses import A2CLoss


def assert_dummies_do_not_matter(
    arguments: dict[str, Tensor], loss_of: Callable[[dict[str, Tensor]], A2CLoss], junk: float
) -> None:
    """The loss, and its gradient, are the same with `junk` wherever `valid` is false."""
    expected = loss_of(arguments)
    spoiled = {
        name: tensor if name == "valid" else tensor.detach().masked_fill(~arguments["valid"], junk).requires_grad_()
        for name, tensor in arguments.items()
    }
    loss = loss_of(spoiled)
    assert [x.item() for x in loss] == [x.item() for x in expected]
    loss.total.backward()
    for name in ("log_prob", "values", "entropy"):
        gradient = spoiled[name].grad
        assert gradient is not None
        assert gradient[~arguments["valid"]].eq(0).all()
        assert gradient.isfinite().all()
