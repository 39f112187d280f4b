"""What is measured after an epoch, and of which samples; batches made ahead."""

import threading

import pytest
import torch

from fastlnl.data import load_dataset
from fastlnl.data.prefetch import prefetched
from fastlnl.evaluation import evaluate, monitored_ids
from fastlnl.methods import ALR, CREMA, IDO, DivideMix
from fastlnl.metrics import memorisation
from fastlnl.trainer import Trainer

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
NAMES = ("memorised", "wrong_as_true", "wrong_as_other", "right_as_true")


def history(method, **settings):
    settings = {"noise": "symmetric:0.4", "epochs": 3, "optimizer": "adam", "lr": 1e-3} | settings
    records = Trainer(method, load_dataset("digits"), "mlp", **settings).fit().history
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


@pytest.fixture(scope="module")
def prepared():
    trainer = Trainer(ALR(), load_dataset("digits"), "mlp", noise="symmetric:0.4")
    return trainer._prepare()[0], trainer.method


def test_so_many_samples_are_monitored_the_same_each_time(prepared):
    run, _ = prepared
    some = monitored_ids(run, 100)
    assert some.tolist() == sorted(set(some.tolist())) == monitored_ids(run, 100).tolist()
    assert len(some) == 100
    assert set(monitored_ids(run, 50).tolist()) < set(some.tolist())
    everything = list(range(run.num_samples))
    assert monitored_ids(run, True).tolist() == monitored_ids(run, 10**6).tolist() == everything
    assert len(monitored_ids(run, False)) == len(monitored_ids(run, 0)) == 0
    with pytest.raises(ValueError, match="monitor is -1; expected a number of samples"):
        monitored_ids(run, -1)


def test_what_is_memorised_is_that_of_the_monitored(prepared):
    run, method = prepared
    images = torch.cat([batch.views[0] for batch in run.train_in_order])
    ids = monitored_ids(run, 100)
    with torch.no_grad(), run.at_rest():
        predicted = run.network(images).argmax(dim=1)
    expected = memorisation(predicted[ids], run.label[ids], run.true_label[ids])
    found = evaluate(run, method, ids)
    assert {name: found[name] for name in NAMES} == {name: value.item() for name, value in expected.items()}
    assert not set(NAMES) & evaluate(run, method, ids[:0]).keys()


def test_monitoring_changes_nothing_of_the_training():
    every, none = history(ALR(), monitor=True), history(ALR(), monitor=False)
    assert [r["train_loss"] for r in every] == [r["train_loss"] for r in none]
    assert [r["test_accuracy"] for r in every] == [r["test_accuracy"] for r in none]


@pytest.mark.parametrize("build", [ALR, IDO, CREMA, DivideMix])
def test_batches_made_ahead_change_nothing(build):
    settings = {"epochs": 4, "augment": "dropout:0.1"}
    assert repr(history(build(), prefetch=True, **settings)) == repr(history(build(), **settings))  # NaN included
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastlnl-prefetch")]


def test_a_batch_is_made_while_the_one_before_is_used():
    made = []
    batches = prefetched(number for number in range(4) if made.append(number) is None)
    assert next(batches) == 0
    batches.close()  # waits for the thread
    assert made == [0, 1]


def test_an_error_comes_where_its_batch_would():
    def broken():
        yield 1
        raise ValueError("no such sample")

    batches = prefetched(broken())
    assert next(batches) == 1
    with pytest.raises(ValueError, match="no such sample"):
        next(batches)
