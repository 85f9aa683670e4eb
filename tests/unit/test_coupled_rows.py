"""What would make the number of workers matter is refused."""

from __future__ import annotations

from repository import PIPELINES

from sfumato import recipe as recipes


def test_batch_normalisation_on_several_workers_wants_a_micro_batch() -> None:
    path = PIPELINES / "digits" / "dcgan.yaml"
    (line,) = recipes.load(path, ["train.micro_batch=null"]).problems()
    assert "train.micro_batch=32" in line
    alone = ["train.micro_batch=null", "parallel.workers=1"]
    assert recipes.load(path, alone).problems() == []
    grouped = ["train.micro_batch=null", "model.network.generator_norm=group"]
    assert recipes.load(path, grouped).problems() == []


def test_so_does_dropout_which_draws_for_a_micro_batch_at_once() -> None:
    path = PIPELINES / "digits" / "ddpm.yaml"
    dropout = ["model.network.dropout=0.1", "train.micro_batch=null"]
    (line,) = recipes.load(path, dropout).problems()
    assert "dropout" in line and "train.micro_batch=64" in line
    assert recipes.load(path, [*dropout, "parallel.workers=1"]).problems() == []
    assert recipes.load(path, dropout[:1]).problems() == []


def test_groups_that_a_model_compares_divide_its_micro_batches() -> None:
    path = PIPELINES / "digits" / "stylegan2.yaml"
    assert recipes.load(path).problems() == []
    (line,) = recipes.load(path, ["model.network.minibatch_group=5"]).problems()
    assert "groups of 5 images" in line and "do not divide 32" in line and "use 30" in line
    (line,) = recipes.load(path, ["model.network.minibatch_group=24"]).problems()
    assert line.startswith("train.micro_batch") and "use 24" in line
    assert recipes.load(path, ["model.network.minibatch_group=1"]).problems() == []
