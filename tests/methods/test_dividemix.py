"""The laws of DivideMix, its degenerate splits, its options. The lockstep test is test_dividemix_lockstep.py."""

import dataclasses

import pytest
import torch
from test_dividemix_lockstep import AUGMENT, build_run, network_with_norm
from torch import nn
from toy import LR, toy_data, toy_run

from fastlnl.errors import ShapeError
from fastlnl.methods import DivideMix
from fastlnl.ops.refine_targets import refine_targets
from fastlnl.trainer import Trainer


def prepared(method, run=None, t=1):
    """A method before its first epoch after the warm-up, everything scored, and the run."""
    run = run or build_run()
    method.setup(run)
    run.start_epoch(t, LR)
    method.divide()
    return method, run


def test_golden_targets():
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    label, w = torch.tensor([1]), torch.tensor([0.7])
    plain = refine_targets([logits, logits], label, w, temperature=1.0)
    torch.testing.assert_close(plain, torch.tensor([[0.18, 0.79, 0.03]]), rtol=0, atol=1e-6)  # 1 does not sharpen
    sharp = torch.tensor([[0.049285062, 0.949345908, 0.001369030]])
    torch.testing.assert_close(refine_targets([logits], label, w, temperature=0.5), sharp, rtol=0, atol=1e-6)


def test_targets_sum_to_one_and_views_may_change_places():
    method, run = prepared(DivideMix(warmup_epochs=0, augment=AUGMENT))
    network, peer = run.networks
    network.module.eval()  # in train mode a forward pass moves the running statistics, though not the answer
    for step in method.steps(0, 1):
        target = method.targets(network, network, peer, step)
        turned = step._replace(halves=tuple(half._replace(views=half.views[::-1]) for half in step.halves))
        torch.testing.assert_close(target.sum(1), torch.ones(len(target)))
        torch.testing.assert_close(method.targets(network, network, peer, turned), target, rtol=0, atol=1e-6)


def test_without_mixup_the_loss_is_that_of_the_rows_themselves():
    method, run = prepared(DivideMix(warmup_epochs=0, alpha=0.0, prior_weight=0.0, augment=AUGMENT))
    network, peer = run.networks
    step = next(method.steps(0, 1))
    assert step.coefficient == 1.0
    target = method.targets(network, network, peer, step)
    n, views = step.sizes[0], [half.views for half in step.halves]
    rows = torch.cat([view for half in views for view in half])
    p = network(rows).double().softmax(1)
    doubled = torch.cat([half for part in target.split(step.sizes) for half in (part, part)]).double()
    expected = -(doubled[: 2 * n] * p[: 2 * n].log()).sum(1).mean() + 3 * ((p - doubled)[2 * n :] ** 2).mean()
    loss = method.mixmatch(
        network, step._replace(unlabeled_weight=3.0), views, [(t, t) for t in target.split(step.sizes)]
    )
    torch.testing.assert_close(loss.double(), expected, rtol=0, atol=1e-5)


def test_the_ramp_rises_inside_the_epoch():
    method, _ = prepared(DivideMix(warmup_epochs=3, unlabeled_weight=32.0, ramp_epochs=16))
    weights = [step.unlabeled_weight for step in method.steps(0, 5)]  # one whole epoch after the warm-up
    expected = [32 * (1 + i / len(weights)) / 16 for i in range(len(weights))]
    assert weights == pytest.approx(expected)
    assert [step.unlabeled_weight for step in method.steps(0, 40)] == [32.0] * len(weights)
    method.options["ramp_epochs"] = 0
    assert next(method.steps(0, 4)).unlabeled_weight == 32.0


def test_each_network_trains_on_the_split_of_the_other():
    """Swapped networks have swapped splits, and a network's steps follow its peer's split alone."""
    method, run = prepared(DivideMix(warmup_epochs=0))
    mine, other = [split.clean_prob.clone() for split in method.splits]
    assert not torch.equal(mine, other)
    assert next(method.steps(0, 1)).clean_prob is method.splits[1].clean_prob
    batches = [step.halves[0].index for step in method.steps(0, 1)]
    assert bool(method.splits[1].is_clean[torch.cat(batches)].all())
    run.networks = run.networks[::-1]
    method.divide()
    assert torch.equal(method.splits[0].clean_prob, other)
    assert torch.equal(method.splits[1].clean_prob, mine)


@pytest.mark.parametrize("threshold", [1.0, 0.0])
def test_a_missing_half_is_announced_and_training_goes_on(threshold):
    """Nobody clean: the B of largest clean_prob. Everybody: mixup over the labelled alone."""
    method, run = prepared(DivideMix(warmup_epochs=0, threshold=threshold))
    for split in method.splits:
        split.clean_prob.clamp_(1e-3, 0.999)
        split.is_clean.copy_(split.clean_prob > threshold)
    warning = "no sample" if threshold else "every sample"
    with pytest.warns(UserWarning, match=warning):
        steps = list(method.steps(0, 1))
    labelled, everybody = run.batch_size // 2, run.num_samples
    assert sum(step.sizes[0] for step in steps) == (labelled if threshold else everybody)
    assert {len(step.halves) for step in steps} == ({2} if threshold else {1})
    before = run.networks[1].weights()
    with pytest.warns(UserWarning, match=warning):
        method.train(1, 1)
    after = run.networks[1].weights()
    assert all(value.isfinite().all() for value in after.values())
    assert not torch.equal(before["0.weight"], after["0.weight"])


def test_equal_losses_keep_the_split_that_was():
    run = build_run()
    for network in run.networks:
        nn.init.zeros_(network.module[-1].weight)
        nn.init.zeros_(network.module[-1].bias)
    method, _ = prepared(DivideMix(warmup_epochs=0), run)
    assert method.metrics()["collapsed"] == 1
    assert all(torch.equal(split.clean_prob, torch.ones(run.num_samples)) for split in method.splits)


def test_the_penalty_has_no_nan_where_the_original_has_one():
    method, _ = prepared(DivideMix("asymmetric"))
    logits = torch.tensor([[1e4, 0.0, -1e4, 0.0]], requires_grad=True)
    method.warm_up_loss(logits, torch.tensor([0])).backward()
    assert logits.grad.isfinite().all()


def test_target_passes_can_leave_the_running_statistics_alone():
    for frozen in (False, True):
        method, run = prepared(DivideMix(warmup_epochs=0, freeze_target_stats=frozen))
        network, peer = run.networks
        before = {name: x.clone() for name, x in network.module.named_buffers()}
        method.targets(network, network, peer, next(method.steps(0, 1)))
        same = all(torch.equal(x, before[name]) for name, x in network.module.named_buffers())
        assert same == frozen
        assert network.module[1].track_running_stats


def test_token_ids_are_refused():
    data = toy_data()
    tokens = dataclasses.replace(data, train_images=data.train_label[:, None].repeat(1, 5))
    run = toy_run(tokens, tokens.train_label, build=network_with_norm)
    with pytest.raises(ShapeError, match="token ids, between which dividemix cannot interpolate; use alr"):
        DivideMix().setup(run)


@pytest.mark.parametrize(
    ("option", "value"), [("alpha", -1.0), ("temperature", 0.0), ("unlabeled_weight", -1.0), ("threshold", 1.5)]
)
def test_options_outside_their_range(option, value):
    with pytest.raises(ValueError, match=f"{option} is {value}"):
        DivideMix(**{option: value}).setup(build_run())


def test_default_warm_up_is_a_share_of_the_run():
    for epochs, expected in ((3, 1), (30, 4), (60, 9), (300, 10)):
        run = build_run()
        run.epochs = epochs
        method = DivideMix()
        method.setup(run)
        assert method.warmup_epochs == expected


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path):
    data, recipe = toy_data(num_samples=64, spread=2.0), {"noise": "symmetric:0.4", "epochs": 4, "batch_size": 16}

    def trainer(out_dir, method):
        return Trainer(method, data, network_with_norm, out_dir=out_dir, **recipe)

    def method():
        return DivideMix(warmup_epochs=1, average_last=3, augment=AUGMENT)

    whole = trainer(None, method()).fit()

    class Killed(DivideMix):
        def epoch(self, t):
            if t == 4:
                raise KeyboardInterrupt
            super().epoch(t)

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, Killed(warmup_epochs=1, average_last=3, augment=AUGMENT)).fit()
    resumed = trainer(tmp_path, method()).fit(resume=True)
    assert resumed.history[-1]["train_loss"] == whole.history[-1]["train_loss"]
    assert resumed.metrics == whole.metrics
