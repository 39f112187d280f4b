"""The laws of SANM, what it shares with DivideMix, its decoder, and what it refuses."""

import pytest
import torch
from test_sanm_lockstep import CLASSES, SIZE, build_run, images_of_four_classes, narrow_decoder, small_cnn
from torch import nn
from toy import fit, toy_data, toy_run

from fastlnl.errors import ShapeError
from fastlnl.methods import SANM, DivideMix
from fastlnl.networks.decoder import decoder
from fastlnl.ops import erase_peaks as primitive
from fastlnl.trainer import Trainer

__all__ = ["narrow_decoder"]  # a fixture, for every test here
LR = 0.05


def weights_after(method, epochs=3):
    run = build_run()
    method.setup(run)
    fit(method, run, epochs=epochs, lr=LR)
    return [network.weights() for network in run.networks]


def assert_equal_weights(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        for name, value in mine.items():
            assert torch.equal(value, other[name]), name


def test_without_masks_it_is_dividemix():
    plain = {"warmup_epochs": 1, "clip_norm": 1.0}
    ours = weights_after(SANM(views="unmasked", weak="crop_flip", **plain))
    assert_equal_weights(ours, weights_after(DivideMix(augment="crop_flip", **plain)))


@pytest.mark.parametrize(("views", "number"), [("code", 6), ("two", 4)])
def test_boxes_of_no_size_leave_dividemix_on_as_many_views(views, number, monkeypatch):
    monkeypatch.setattr(SANM, "augmentations", lambda self: (None,) * number)  # every view the image itself
    plain = {"warmup_epochs": 1, "clip_norm": 1.0}
    ours = weights_after(SANM(views=views, mask_ratio=(0.0, 0.0, 0.0), reconstruction_weight=0.0, **plain))
    assert_equal_weights(ours, weights_after(DivideMix(augment=(None,) * number, **plain)))


class Spy:
    """Keeps what goes into the masking and what comes out."""

    def __init__(self, monkeypatch):
        self.calls = []
        monkeypatch.setattr("fastlnl.methods.sanm.erase_peaks", self)

    def __call__(self, *arguments, **options):
        pair = primitive.erase_peaks(*arguments, **options)
        self.calls.append((*arguments, pair))
        return pair


@pytest.mark.parametrize("options", [{}, {"mask_anchor": "center"}, {"separate_low_box": True, "area_factor": 1.0}])
def test_masks_lie_inside_and_labels_keep_their_sum(options, monkeypatch):
    spy, low, high, distrust = Spy(monkeypatch), 0.1, 0.3, 0.2
    run, method = build_run(), SANM(warmup_epochs=0, mask_ratio=(low, high, distrust), **options)
    method.setup(run)
    fit(method, run, epochs=1, lr=LR)
    assert len(spy.calls) >= 8
    factor = method.options["area_factor"]
    for _, images, target, clean_prob, _, _, pair in spy.calls:
        top, left, height, width = pair.boxes.unbind(2)
        assert ((top >= 0) & (left >= 0) & (top + height <= SIZE) & (left + width <= SIZE)).all()
        share = (height * width) / (SIZE * SIZE) / factor
        rounding = 0.5 * 24 / (SIZE * SIZE) / factor  # of two sides, together less than 24 pixels, by half a pixel
        bounds = low - rounding, (high + distrust * (1 - clean_prob))[:, None] + rounding
        assert ((share > bounds[0]) & (share < bounds[1])).all()
        for moved in (pair.target, pair.low_target):
            torch.testing.assert_close(moved.sum(1), torch.ones(len(moved)))
            assert ((target - moved).amax(1) > low - 1e-6).all()
        erased = (pair.high != images).any(1).flatten(1).sum(1)
        assert (erased <= (height * width)[:, 0]).all()


def test_the_less_a_label_is_trusted_the_larger_its_mask(monkeypatch):
    """Labelled and unlabelled samples both bring the clean_prob of the peer's split."""
    spy, run, method = Spy(monkeypatch), build_run(), SANM(warmup_epochs=0)
    method.setup(run)
    run.start_epoch(1, LR)
    method.divide()
    method.train(1, 1)
    of_peer, boxes = method.splits[0], []
    for _, _, _, clean_prob, _, _, _ in spy.calls:
        boxes.append(clean_prob)
    seen = torch.cat(boxes)
    assert (seen > 0.5).any()
    assert (seen < 0.5).any()
    assert torch.isin(seen, of_peer.clean_prob).all()


def test_the_same_sample_has_the_same_mask_draws_in_any_batch():
    run, method = build_run(), SANM(warmup_epochs=0)
    method.setup(run)
    draws = []
    for t in (1, 1, 2):
        run.start_epoch(t, LR)
        method.divide()
        method.train(0, t)
        draws.append(method.mask_draws)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert draws[0].shape == (run.num_samples, 8)


def test_targets_stay_as_they_were_for_the_unmasked_rows(monkeypatch):
    seen = []

    def watched(views, targets, partner, coefficient):
        seen.append([target.clone() for target in targets])
        return torch.cat(views), torch.cat(targets)

    monkeypatch.setattr("fastlnl.methods.dividemix.mix_views", watched)
    run, method = build_run(), SANM(warmup_epochs=0)
    method.setup(run)
    fit(method, run, epochs=1, lr=LR)
    for first in seen:
        for half in (first[:6], first[6:]):
            assert all(torch.equal(half[0], same) for same in half[1:4])
            assert torch.equal(half[4], half[5])
            assert not torch.equal(half[0], half[4])


def test_a_missing_unlabelled_half_leaves_masks_on_the_labelled_alone(monkeypatch):
    spy, run, method = Spy(monkeypatch), build_run(), SANM(warmup_epochs=0, threshold=0.0)
    method.setup(run)
    run.start_epoch(1, LR)
    for split in method.splits:
        split.is_clean.fill_(True)
    with pytest.warns(UserWarning, match="every sample"):
        method.train(0, 1)
    assert {len(call[1]) for call in spy.calls} == {run.batch_size // 2}
    assert all(value.isfinite().all() for value in run.networks[0].weights().values())


def test_double_softmax_has_the_range_of_the_release():
    for classes, highest, losses in ((10, 0.232, (1.46, 2.46)), (100, 0.0267, None)):
        logits = torch.zeros(1, classes)
        logits[0, 0] = 50.0
        network = nn.Identity()
        once = SANM(double_softmax=True).logits(network, logits)
        p = once.softmax(1)
        assert p.max() == pytest.approx(highest, abs=5e-4)
        if losses:
            assert [-p[0, c].log().item() for c in (0, 1)] == pytest.approx(losses, abs=5e-3)
        assert torch.equal(SANM().logits(network, logits), logits)


@pytest.mark.parametrize(
    ("features", "image", "millions"),
    [((512, 4, 4), (3, 32, 32), 3.28), ((2048, 7, 7), (3, 224, 224), 19.0), ((9, 4, 4), (1, 28, 28), None),
     ((9, 3, 3), (3, 100, 100), None), ((9, 5, 5), (3, 5, 5), None), ((9, 1, 1), (1, 8, 8), None)],
)  # fmt: skip
def test_the_decoder_ends_at_the_size_of_the_image(features, image, millions, monkeypatch):
    if millions is not None:
        monkeypatch.setattr("fastlnl.networks.decoder.HIDDEN", (256, 128))
    module = decoder(features, image)
    if millions is not None:
        assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert module(torch.zeros(1, *features)).shape == (1, *image)
    assert all(isinstance(layer, nn.ConvTranspose2d) for layer in module)


def test_the_decoder_refuses_what_it_cannot_enlarge():
    with pytest.raises(ShapeError, match="expected squares"):
        decoder((8, 4, 4), (3, 32, 24))
    with pytest.raises(ShapeError, match="at least as large as its feature map"):
        decoder((8, 4, 4), (3, 2, 2))


def test_features_are_refused():
    data = toy_data()
    with pytest.raises(ShapeError, match=r"samples are \(6,\) but sanm masks images"):
        SANM().setup(toy_run(data, data.train_label))


class Branched(nn.Module):
    """A network that is no nn.Sequential, as torchvision's and timm's are."""

    def __init__(self):
        super().__init__()
        self.stem, self.layer4 = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, images):
        return self.fc(self.layer4(self.stem(images).relu()).mean((2, 3)))


def test_any_network_with_a_named_feature_map():
    data = images_of_four_classes()
    run = toy_run(data, data.train_label, batch_size=16, build=Branched)
    with pytest.raises(ValueError, match="its feature map has to be named"):
        SANM().setup(run)
    method = SANM(feature_map="layer4", warmup_epochs=0)
    method.setup(run)
    assert method.decoders[0][0].in_channels == 6
    fit(method, run, epochs=1, lr=LR)
    assert all(value.isfinite().all() for value in run.networks[0].weights().values())


@pytest.mark.parametrize(
    ("options", "text"),
    [({"views": "three"}, "views is 'three'"), ({"reconstruction_weight": -1.0}, "reconstruction_weight is -1.0"),
     ({"mask_fill": "black"}, "mask_fill is 'black' and black None")],
)  # fmt: skip
def test_options_outside_their_range(options, text):
    with pytest.raises(ValueError, match=text):
        SANM(**options).setup(build_run())


def test_black_boxes_take_the_value_that_is_given(monkeypatch):
    spy, run = Spy(monkeypatch), build_run()
    method = SANM(warmup_epochs=0, mask_fill="black", black=(-1.5, -1.5, -1.5))
    method.setup(run)
    fit(method, run, epochs=1, lr=LR)
    images, pair = spy.calls[0][1], spy.calls[0][-1]
    assert (pair.high[pair.high != images] == -1.5).all()


def test_defaults_follow_the_number_of_classes():
    run = build_run()
    for classes, floor in ((14, "none"), (100, "clamp")):
        run.num_classes = classes
        method = SANM(views="unmasked")
        method.setup(run)
        assert method.masking.target_floor == floor
    assert SANM("code").options["target_floor"] == "none"
    assert SANM("clothing1m").options["mask_ratio"] == (0.06, 0.13, 0.1)


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path):
    data, recipe = images_of_four_classes(40), {"noise": "symmetric:0.3", "epochs": 3, "batch_size": 16, "lr": LR}

    def trainer(out_dir, method):
        return Trainer(method, data, small_cnn, out_dir=out_dir, **recipe)

    def method():
        return SANM(warmup_epochs=1, views="two")

    whole = trainer(None, method()).fit()

    class Killed(SANM):
        def epoch(self, t):
            if t == 3:
                raise KeyboardInterrupt
            super().epoch(t)

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, Killed(warmup_epochs=1, views="two")).fit()
    resumed = trainer(tmp_path, method()).fit(resume=True)
    assert resumed.history[-1]["train_loss"] == whole.history[-1]["train_loss"]
    assert resumed.metrics == whole.metrics
