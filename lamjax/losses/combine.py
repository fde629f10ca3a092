"""Losses made of losses."""

from collections.abc import Mapping

from lamjax.losses.labels import Loss


def multitask_loss(losses: Mapping[str, Loss]) -> Loss:
    """The loss of the one task that a batch {task: batch} belongs to, with that task's metrics.

    The name of the task is in the structure of the batch, so that jit compiles a program for each task and shape.
    """

    def loss(params, batch, lr_ratio=1.0):
        ((task, part),) = batch.items()
        return losses[task](params, part, lr_ratio)

    return loss


def weighted_sum(losses: Mapping[str, tuple[float, Loss]]) -> Loss:
    """Σ_k w_k L_k(params, batch[k]) for a dict of weights and losses, and a batch that is a dict with the same keys.

    Metrics are named "k/metric".
    """

    def loss(params, batch, lr_ratio=1.0):
        total, metrics = 0.0, {}
        for name, (weight, part) in losses.items():
            value, found = part(params, batch[name], lr_ratio)
            total = total + weight * value
            metrics |= {f"{name}/{key}": number for key, number in found.items()}
        return total, metrics

    return loss
