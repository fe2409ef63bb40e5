"""The log's figures for TensorBoard, which draws them while a run goes on; in DIR/tensorboard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...errors import MissingExtraError

# log's key -> TensorBoard's tag, of lines within an epoch and of those at its end
WITHIN = {"loss": "loss/training", "rate": "rate", "images_per_second": "images per second"}
AT_END = {
    "loss": "loss/validation", "train_loss": "loss/training, whole epoch", "top1": "accuracy/top-1",
    "top5": "accuracy/top-5", "train_top1": "accuracy/training",
}  # fmt: skip


def board(folder: Path) -> Callable[[Mapping[str, Any]], None]:
    """What is to be given each line of the log. MissingExtraError where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("--tensorboard", "tensorboard") from error
    writer: Any = None

    def event(line: Mapping[str, Any]) -> None:
        nonlocal writer
        kind = line["event"]
        known = {"step": WITHIN, "epoch": AT_END}.get(kind, {})
        if known and writer is None:  # a run that had finished gets no more figures
            writer = SummaryWriter(str(folder / "tensorboard"))
        for key, tag in known.items():
            if key in line:
                writer.add_scalar(tag, line[key], line["step"])
        if writer is not None and kind in ("epoch", "end"):
            writer.flush()

    return event
