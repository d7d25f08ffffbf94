"""The training loop: the same weights whether or not it was interrupted."""

import os
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from seas.errors import InputError
from seas.seeding import rng, seed_of, torch_rng
from seas.settings import ComputeSettings
from seas.training import CHECKPOINT, accumulated_update, prepare_device, train


class Toy:
    """A regression whose model holds buffers (BatchNorm) and whose optimizer holds moments."""

    def __init__(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01, fused=True)
        self.dies_at = None

    def update(self, step):
        if step == self.dies_at:
            raise KeyboardInterrupt
        inputs = torch.randn(8, 3, generator=torch_rng(0, "toy", step))
        loss = ((self.model(inputs) - inputs.sum(1, keepdim=True)) ** 2).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach()}

    def run(self, folder, updates=23, checkpoint_every=5):
        folder.mkdir(exist_ok=True)
        state = {"model": self.model, "optimizer": self.optimizer}
        return train(
            self.update, updates, state, working=folder, label="toy", checkpoint_every=checkpoint_every, record_every=5
        )


@pytest.mark.parametrize("checkpoint_every", [5, 7, 1])
@pytest.mark.parametrize("dies_at", [0, 4, 5, 13, 22])
def test_resumed_equals_uninterrupted(tmp_path, dies_at, checkpoint_every):
    whole = Toy()
    losses = whole.run(tmp_path / "whole", checkpoint_every=checkpoint_every)
    killed = Toy()
    killed.dies_at = dies_at
    with pytest.raises(KeyboardInterrupt):
        killed.run(tmp_path / "killed", checkpoint_every=checkpoint_every)
    again = Toy()
    resumed = again.run(tmp_path / "killed", checkpoint_every=checkpoint_every)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert resumed.equals(losses)


def test_a_checkpoint_is_really_used(tmp_path):
    killed = Toy()
    killed.dies_at = 13
    with pytest.raises(KeyboardInterrupt):
        killed.run(tmp_path)
    assert (tmp_path / CHECKPOINT).exists()
    steps = []
    again = Toy()
    update = again.update
    again.update = lambda step: steps.append(step) or update(step)
    again.run(tmp_path)
    assert steps == list(range(10, 23))


@pytest.mark.parametrize("left", [0, 100], ids=["empty", "cut short"])
def test_a_damaged_checkpoint_counts_as_none(tmp_path, left, capsys):
    whole, killed, again = Toy(), Toy(), Toy()
    losses = whole.run(tmp_path / "whole")
    killed.dies_at = 13
    with pytest.raises(KeyboardInterrupt):
        killed.run(tmp_path / "killed")
    checkpoint = tmp_path / "killed" / CHECKPOINT
    checkpoint.write_bytes(checkpoint.read_bytes()[:left])
    assert again.run(tmp_path / "killed").equals(losses)
    assert "damaged; the training begins anew" in capsys.readouterr().out


def test_a_checkpoint_is_on_the_disk_before_the_earlier_one_goes(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda number: (done.append(str(Path(f"/proc/self/fd/{number}").readlink())), fsync(number))
    )
    monkeypatch.setattr(os, "replace", lambda source, to: (done.append(str(source)), replace(source, to)))
    Toy().run(tmp_path / "run", updates=6, checkpoint_every=5)
    ours = [name for name in done if "checkpoint" in name]
    assert len(ours) == 2 and ours[0] == ours[1]


def test_recorded_losses_are_means(tmp_path):
    tmp_path.joinpath("w").mkdir()
    losses = train(
        lambda step: {"loss": torch.tensor(float(step))},
        7,
        {},
        working=tmp_path / "w",
        label="l",
        checkpoint_every=100,
        record_every=3,
    )
    assert losses.to_dict("list") == {"step": [3, 6, 7], "loss": [1.0, 4.0, 6.0]}


def test_a_loss_is_the_mean_of_the_updates_that_gave_it(tmp_path):
    losses = train(
        lambda step: {"loss": torch.tensor(float(step))} | ({"abnormal": torch.tensor(6.0)} if step in (2, 4) else {}),
        8,
        {},
        working=tmp_path,
        label="l",
        checkpoint_every=100,
        record_every=2,
    )
    assert losses.loss.tolist() == [0.5, 2.5, 4.5, 6.5]
    assert losses.abnormal.fillna(-1).tolist() == [-1, 6, 6, -1]


def test_a_loss_of_an_update_is_the_mean_of_the_batches_that_gave_it():
    weight = torch.nn.Parameter(torch.zeros(()))
    found = accumulated_update(
        lambda draw: {"loss": weight + draw} | ({"abnormal": weight + 6} if draw == 3 else {}),
        1,
        2,
        torch.optim.SGD([weight]),
    )
    assert {name: float(value) for name, value in found.items()} == {"loss": 2.5, "abnormal": 6}


@pytest.mark.parametrize(("checkpoint_every", "ends"), [(100, 2), (1, 1)], ids=["recorded", "before it is kept"])
def test_a_loss_that_is_no_number_stops_the_training(tmp_path, checkpoint_every, ends):
    with pytest.raises(InputError, match=f"toy: the loss is not finite at update {ends} "):
        train(
            lambda step: {"loss": torch.tensor(float("nan"))},
            9,
            {},
            working=tmp_path,
            label="toy",
            checkpoint_every=checkpoint_every,
            record_every=2,
        )
    assert not (tmp_path / CHECKPOINT).exists()


@pytest.mark.parametrize(
    ("largest_norm", "change"), [(None, (-3, -4)), (10, (-3, -4)), (1, (-0.6, -0.8)), (2.5, (-1.5, -2))]
)
def test_a_long_gradient_of_all_weights_together_is_shortened(largest_norm, change):
    weights = [torch.nn.Parameter(torch.zeros(())) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [weight]} for weight in weights], lr=1)
    # The mean of the two batches' gradients is (3, 4).
    accumulated_update(
        lambda draw: {"loss": 6 * weights[0] if draw % 2 else 8 * weights[1]}, 0, 2, optimizer, largest_norm
    )
    assert [float(weight.detach()) for weight in weights] == pytest.approx(change, abs=1e-5)


def test_tensorboard_holds_the_losses_of_a_killed_run_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def run(first_value, dies_at):
        def update(step):
            if step == dies_at:
                raise KeyboardInterrupt
            return {"loss": torch.tensor(first_value + step)}

        given = {"checkpoint_every": 4, "record_every": 2, "tensorboard": tmp_path / "tb"}
        train(update, 8, {}, working=tmp_path, label="l", **given)

    with pytest.raises(KeyboardInterrupt):
        run(0.0, dies_at=7)
    time.sleep(1)  # the files are read in the order of their seconds
    run(100.0, dies_at=None)
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(2, 0.5), (4, 2.5), (6, 104.5), (8, 106.5)]


def test_draws_depend_on_their_names_alone():
    assert seed_of(1, "a") == seed_of(1, "a") != seed_of("1", "a")
    assert rng(0, "x").integers(1 << 40) == rng(0, "x").integers(1 << 40)
    assert torch.equal(torch.randn(3, generator=torch_rng(0, "x")), torch.randn(3, generator=torch_rng(0, "x")))


def test_fp32_is_no_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    prepare_device(ComputeSettings(device="cpu", threads=1))
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_a_sentence():
    with pytest.raises(InputError, match="compute.device"):
        prepare_device(ComputeSettings(device="cuda"))
