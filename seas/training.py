"""The training loop that all trainers share: interruptible, resumable bit for bit, with progress and losses."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from seas.artifacts import (
    MEASURED,
    Provenance,
    link_or_copy,
    read_table,
    working_folder,
    write_table,
    writing_file,
    writing_folder,
)
from seas.errors import InputError
from seas.settings import ComputeSettings

CHECKPOINT = "checkpoint.safetensors"
LOSSES = "losses.parquet"
SECONDS_BETWEEN_PROGRESS_LINES = 5.0


def prepare_device(compute: ComputeSettings) -> torch.device:
    """Set the number of threads, have a card's convolutions compute in fp32 where fp32 is asked for, and give the device.

    PyTorch's default on a card is TF32, which rounds what a convolution reads to 10 bits of mantissa.

    Raises InputError when CUDA is asked for and there is none.
    """
    torch.set_num_threads(compute.threads)
    torch.backends.cudnn.allow_tf32 = False
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise InputError("compute.device is 'cuda', but this machine has no usable GPU; set compute.device to 'cpu'")
    return torch.device(compute.device)


def autocast(compute: ComputeSettings) -> AbstractContextManager:
    """The autocast context of the wanted precision."""
    if compute.precision == "bf16":
        return torch.autocast(compute.device, torch.bfloat16)
    return nullcontext()


def progress(items: Sequence | range, label: str, done: int = 0) -> Iterator:
    """Iterate over ``items`` and print a progress bar as a line every few seconds.

    Lines, not a bar redrawn in place: several stages run beside each other on one screen.
    ``done`` counts what an earlier run had finished before these items.
    """
    total, started, last = done + len(items), time.monotonic(), time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_PROGRESS_LINES or number == len(items):
            last = now
            meter = tqdm.format_meter(done + number, total, now - started, ncols=90, prefix=label, initial=done)
            print(meter, flush=True)


def train(
    update: Callable[[int], Mapping[str, Tensor]],
    updates: int,
    state: Mapping[str, nn.Module | Optimizer],
    *,
    working: Path,
    label: str,
    checkpoint_every: int,
    checkpoint_at_end: bool = False,
    tensorboard: Path | None = None,
    record_every: int = 10,
) -> pd.DataFrame:
    """Call ``update(step)`` for each step not yet done and give the recorded losses.

    ``update`` does one optimizer update and gives its losses as detached scalars; all its random
    draws come from ``seas.seeding`` with the step among the parts. ``state`` names every module and
    optimizer that it changes. A checkpoint in ``working`` continues an interrupted run; because the
    draws depend on the step alone, the resumed run equals the uninterrupted one bit for bit on a CPU.

    Returns a table with the columns step and one for each loss (mean over those of the ``record_every``
    updates that end at step which gave it; empty where none did).
    """
    checkpoint = working / CHECKPOINT
    first, records, since = _load_checkpoint(checkpoint, state)
    if first:
        print(f"{label}: continues at update {first} of {updates}", flush=True)
    writer = SummaryWriter(str(tensorboard), purge_step=first + 1) if tensorboard else None
    started = time.monotonic()
    for step in progress(range(first, updates), label, done=first):
        since.append({name: value.float() for name, value in update(step).items()})
        end = step + 1
        recorded = end % record_every == 0 or end == updates
        due = end % checkpoint_every == 0 if end < updates else checkpoint_at_end
        if recorded or due:
            names = dict.fromkeys(name for losses in since for name in losses)
            means = {name: _mean(losses[name] for losses in since if name in losses) for name in names}
            if not all(torch.isfinite(torch.tensor(list(means.values())))):
                raise InputError(f"{label}: the loss is not finite at update {end} ({means}); lower the learning rate")
        if recorded:
            since = []
            records.append({"step": end, **means})
            if writer:
                for name, value in means.items():
                    writer.add_scalar(name, value, end)
        if due:
            _save_checkpoint(checkpoint, state, end, records, since)
    MEASURED.update(updates=updates - first, update_seconds=time.monotonic() - started)
    if writer:
        writer.close()
    return pd.DataFrame(records)


def _mean(losses: Iterable[Tensor]) -> float:
    return float(torch.stack([loss.cpu() for loss in losses]).mean())


def write_trained(
    output: Path, provenance: Provenance, models: Mapping[str, Callable[[Path], Callable[[Path], pd.DataFrame]]]
) -> None:
    """Train one model and write the artifact ``output``; or several, each into the subfolder of its name.

    models: name, "" for a single one → a function that trains with its checkpoints in a folder, and gives a function
    that writes the model into a folder and returns its losses. A named model, once trained, is kept across restarts.
    losses.parquet holds the losses, of several models their mean.
    """
    working = working_folder(output, provenance)
    if set(models) == {""}:
        save = models[""](working)
        with writing_folder(output, provenance) as folder:
            write_table(save(folder), folder / LOSSES)
        return
    for name, trained in models.items():
        piece, checkpoints = working / "models" / name, working / "training" / name
        if not piece.exists():
            save = trained(checkpoints)
            with writing_folder(piece, None) as folder:
                write_table(save(folder), folder / LOSSES)
            del save  # and the model with it, before the next one is loaded
            shutil.rmtree(checkpoints, ignore_errors=True)
    with writing_folder(output, provenance) as folder:
        for name in models:
            shutil.copytree(working / "models" / name, folder / name, copy_function=link_or_copy)
        tables = [read_table(folder / name / LOSSES) for name in models]
        write_table(pd.concat(tables).groupby("step", as_index=False).mean(), folder / LOSSES)


class OffloadedAdamW(torch.optim.AdamW):
    """AdamW that keeps gradients, moments and master weights in the CPU's memory; the device holds the weights alone.

    Each gradient leaves the device as soon as it is whole, so that never all of them are there. On a CPU its updates are
    AdamW's own, bit for bit.
    """

    def __init__(self, groups: Sequence[Mapping], **options) -> None:
        """groups: as of AdamW."""
        self._shown = [parameter for group in groups for parameter in group["params"]]
        self._masters = [nn.Parameter(parameter.detach().cpu().clone()) for parameter in self._shown]
        for shown, master in zip(self._shown, self._masters, strict=True):
            shown.register_post_accumulate_grad_hook(partial(self._collect, master))
        masters = iter(self._masters)
        super().__init__([{**group, "params": [next(masters) for _ in group["params"]]} for group in groups], **options)

    @staticmethod
    def _collect(master: nn.Parameter, shown: nn.Parameter) -> None:
        gradient = shown.grad.cpu()
        master.grad = gradient if master.grad is None else master.grad + gradient
        shown.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One update of the masters, copied to the device."""
        super().step()
        for shown, master in zip(self._shown, self._masters, strict=True):
            shown.copy_(master)

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict) -> None:
        """Take a checkpoint's moments; the masters become the weights that the device has by then."""
        super().load_state_dict(state_dict)
        for shown, master in zip(self._shown, self._masters, strict=True):
            master.copy_(shown)


def accumulated_update(
    losses: Callable[[int], Mapping[str, Tensor]],
    step: int,
    batches: int,
    optimizer: Optimizer,
    largest_norm: float | None = None,
) -> dict[str, Tensor]:
    """One optimizer update on the mean gradient of ``batches`` batches; gives the means of their losses, detached.

    ``losses(draw)`` gives the scalars of one batch, "loss" among them; a mean is over the batches that give it. A gradient,
    of all weights together, whose norm is above ``largest_norm`` is shortened to it.
    """
    given: dict[str, list[Tensor]] = {}
    for draw in range(step * batches, (step + 1) * batches):
        found = losses(draw)
        (found["loss"] / batches).backward()
        for name, value in found.items():
            given.setdefault(name, []).append(value.detach())
    if largest_norm is not None:
        nn.utils.clip_grad_norm_(
            [weight for group in optimizer.param_groups for weight in group["params"]], largest_norm
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {name: torch.stack(values).mean() for name, values in given.items()}


def _save_checkpoint(
    path: Path,
    state: Mapping[str, nn.Module | Optimizer],
    step: int,
    records: list[dict],
    since: list[Mapping[str, Tensor]],
) -> None:
    tensors: dict[str, Tensor] = {}
    groups = {}
    for name, part in state.items():
        if isinstance(part, nn.Module):
            entries = part.state_dict().items()
        else:
            saved = part.state_dict()
            groups[name] = saved["param_groups"]
            entries = [
                (f"{index}.{key}", value) for index, slots in saved["state"].items() for key, value in slots.items()
            ]
        tensors |= {f"{name}/{key}": value.detach().cpu().contiguous().clone() for key, value in entries}
    unrecorded = [{name: float(value) for name, value in losses.items()} for losses in since]
    metadata = {"step": str(step), "groups": json.dumps(groups)}
    metadata |= {"records": json.dumps(records), "since": json.dumps(unrecorded)}
    with writing_file(path) as partial:
        save_file(tensors, partial, metadata)
        with partial.open("rb") as written:  # the checkpoint before it goes when this one is named
            os.fsync(written.fileno())


def _load_checkpoint(
    path: Path, state: Mapping[str, nn.Module | Optimizer]
) -> tuple[int, list[dict], list[Mapping[str, Tensor]]]:
    """The number of finished updates, the recorded losses, and those of the updates since the last record.

    A checkpoint that a power loss has emptied or cut short counts as none.
    """
    if not path.exists():
        return 0, [], []
    try:
        opened = safe_open(path, "pt")
    except SafetensorError:
        print(f"the checkpoint {path.name} is damaged; the training begins anew", flush=True)
        return 0, [], []
    with opened as file:
        metadata = file.metadata()
        groups, names = json.loads(metadata["groups"]), list(file.keys())
        for name, part in state.items():
            entries = {key[len(name) + 1 :]: file.get_tensor(key) for key in names if key.startswith(name + "/")}
            if isinstance(part, nn.Module):
                part.load_state_dict(entries)
            else:
                slots: dict[int, dict[str, Tensor]] = {}
                for key, value in entries.items():
                    index, slot = key.split(".", 1)
                    slots.setdefault(int(index), {})[slot] = value
                part.load_state_dict({"state": slots, "param_groups": groups[name]})
    since = [{name: torch.tensor(value) for name, value in losses.items()} for losses in json.loads(metadata["since"])]
    return int(metadata["step"]), json.loads(metadata["records"]), since
