"""The split by loss: its rules where the fit is no use, its memory, and what it refuses."""

import warnings

import pytest
import torch

from fastlnl.errors import LabelError, StateError
from fastlnl.state.split import LossSplit

N, C = 12, 3
LABEL = torch.arange(N) % C
# Nine samples of small loss, three of large loss.
LOSS = torch.cat((torch.linspace(0.1, 0.5, 9), torch.linspace(4.0, 5.0, 3)))


def logits_of(loss):
    """(N, 2) logits whose loss at class 0 is the given one."""
    p = (-loss.double()).exp()
    return torch.stack((p.log(), torch.log1p(-p)), 1).float()


def scored(loss, **options):
    split = LossSplit(torch.zeros(len(loss), dtype=torch.int64), 2, **options)
    split.score(logits_of(loss), split_label(loss), torch.arange(len(loss)))
    return split


def split_label(loss):
    return torch.zeros(len(loss), dtype=torch.int64)


def test_two_groups_of_losses_are_told_apart():
    split = scored(LOSS)
    split.fit()
    assert torch.equal(split.is_clean, LOSS < 1)
    labelled, unlabelled = split.sets(minimum=4)
    assert torch.equal(labelled, torch.arange(9))
    assert torch.equal(unlabelled, torch.arange(9, N))
    assert not split.collapsed


def test_the_largest_loss_of_a_repeated_id_counts():
    split = LossSplit(split_label(LOSS), 2)
    split.score(logits_of(torch.tensor([0.5, 2.0, 1.0])), torch.zeros(3, dtype=torch.int64), torch.tensor([7, 7, 1]))
    torch.testing.assert_close(split.loss[[1, 7]], torch.tensor([1.0, 2.0]))
    split.score(logits_of(torch.tensor([0.25])), torch.zeros(1, dtype=torch.int64), torch.tensor([7]))
    torch.testing.assert_close(split.loss[7], torch.tensor(0.25))  # of this batch, not of all before


@pytest.mark.parametrize("average_last", [1, 3])
def test_useless_losses_keep_the_probabilities_that_were(average_last):
    split = scored(LOSS, average_last=average_last)
    split.loss.fill_(1.0)
    split.fit()
    assert split.collapsed
    assert torch.equal(split.clean_prob, torch.ones(N))  # nothing was there before
    split.loss.copy_(LOSS)
    split.fit()
    assert not split.collapsed
    kept = split.clean_prob.clone()
    split.loss.fill_(torch.nan)
    split.fit()
    torch.testing.assert_close(split.clean_prob, kept, rtol=0, atol=1e-6)
    split.loss.copy_(LOSS)
    split.loss[0] = torch.inf
    split.fit()
    assert split.clean_prob.isfinite().all()
    assert split.clean_prob[0] == kept[0]


def test_the_mixture_sees_the_mean_of_the_last_normalised_losses():
    split, reference = scored(LOSS, average_last=2), scored(LOSS)
    losses = [torch.rand(N, generator=torch.Generator().manual_seed(i)) * (i + 1) for i in range(3)]
    for loss in losses:
        split.loss.copy_(loss)
        split.fit()
    normal = [(loss - loss.min()) / (loss.max() - loss.min()) for loss in losses]
    reference.of_means.fit((normal[1] + normal[2]) / 2)
    expected = reference.of_means.clean_prob((normal[1] + normal[2]) / 2)
    torch.testing.assert_close(split.clean_prob, expected, rtol=0, atol=1e-6)


def test_nobody_clean_takes_the_best_by_probability_then_loss_then_id():
    split = scored(LOSS)
    split.is_clean.zero_()
    split.clean_prob.copy_(torch.tensor([0.1, 0.4, 0.3, 0.3, 0.3, 0.0, 0, 0, 0, 0, 0, 0]))
    split.loss.copy_(torch.tensor([0.0, 9.0, 2.0, 1.0, 1.0, 0.0, 0, 0, 0, 0, 0, 0]))
    with pytest.warns(UserWarning, match=r"no sample has a clean_prob above 0.5, so the 3 of largest"):
        labelled, unlabelled = split.sets(minimum=3)
    assert labelled.tolist() == [1, 3, 4]
    assert unlabelled.tolist() == [0, 2, 5, 6, 7, 8, 9, 10, 11]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert split.sets(minimum=3)[0].tolist() == [1, 3, 4]  # the set is remembered
    split.is_clean.fill_(True)
    with pytest.warns(UserWarning, match="every sample has a clean_prob above 0.5"):
        assert split.sets(minimum=3)[1].tolist() == []


def test_state_belongs_to_its_data_and_keeps_its_types():
    split = LossSplit(LABEL, C, average_last=2)
    split.loss.copy_(LOSS)
    split.fit()
    twin = LossSplit(LABEL, C, average_last=2)
    twin.load_state_dict(split.state_dict())
    for name, value in split.state_dict().items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(twin.state_dict()[name], value, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(StateError, match="made with other given labels"):
        LossSplit(LABEL.flip(0), C, average_last=2).load_state_dict(split.state_dict())
    assert split.half().clean_prob.dtype == torch.float32


def test_a_label_out_of_range_is_named():
    split = LossSplit(LABEL, C)
    split.score(torch.zeros(2, C), torch.tensor([0, C]), torch.tensor([4, 5]))
    with pytest.raises(LabelError, match="is 3 but logits has 3 classes"):
        split.check()
    with pytest.raises(ValueError, match="average_last 0"):
        LossSplit(LABEL, C, average_last=0)
