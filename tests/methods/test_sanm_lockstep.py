"""SANM against a float64 transcription with loops over images, its identity with DivideMix, and its refusals."""

import math

import pytest
import torch
from test_dividemix_lockstep import assert_same_networks, clean_probability, sharpen
from torch import nn
from torch.nn import functional as F
from toy import fit, noisy_label, plain_step, toy_run, twins_of

from fastlnl.data import Dataset
from fastlnl.methods import SANM
from fastlnl.methods.dividemix import ends_in_one, mixup_draws
from fastlnl.networks.decoder import decoder
from fastlnl.philox import uniform

CLASSES, SIZE, LR = 4, 16, 0.05
WARMUP, EPOCHS = 1, 3
WEIGHT, RECONSTRUCTION, RATIO = 20.0, 0.5, (0.1, 0.3, 0.2)
WEAK, STRONG = "shift", "crop_flip_cutout"


def images_of_four_classes(num_samples=60, channels=3, seed=0):
    """A bright square whose corner tells the class."""
    generator = torch.Generator().manual_seed(seed)

    def draw():
        label = torch.arange(num_samples) % CLASSES
        images = torch.randint(0, 120, (num_samples, channels, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        for i, c in enumerate(label.tolist()):
            top, left = 8 * (c // 2) + i % 3, 8 * (c % 2) + i % 4
            images[i, :, top : top + 4, left : left + 4] += 100
        return images, label

    (train, train_label), (test, test_label) = draw(), draw()
    names = tuple("abcd")
    return Dataset("squares", train, train_label, test, test_label, 4, names, (0.3,) * channels, (0.2,) * channels)


def small_cnn(channels=3):
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, CLASSES),
    )  # fmt: skip


def build_run(channels=3, batch_size=12):
    data = images_of_four_classes(channels=channels)
    label = noisy_label(data, 0.3)
    return toy_run(data, label, epochs=EPOCHS, batch_size=batch_size, build=lambda: small_cnn(channels))


def peaks_of(feature):
    """Highest and lowest pixel (row, column) of one map (Cf, h, w), as the authors' code finds them."""
    attention = feature.square().sum(0)
    attention = attention / attention.norm()
    large = F.interpolate(attention[None, None], (SIZE, SIZE), mode="bilinear", align_corners=False)[0, 0].float()
    level = (255 * ((large - large.min()) / (large.max() - large.min() + 1e-12))).floor()
    return [divmod(int(f(level.flatten())), SIZE) for f in (torch.argmax, torch.argmin)]


def erase(image, feature, target, w, draws):
    """sanm.md section 4 for one image: two copies and their target."""
    low, high, distrust = RATIO
    r = low + (high - low) * draws[0] + distrust * (1 - w)
    rho = 0.8 + 0.45 * draws[1]
    area = 0.5 * r * SIZE * SIZE
    height, width = round(math.sqrt(area * rho)), round(math.sqrt(area / rho))
    copies = []
    for (row, column), fill in zip(peaks_of(feature), (draws[2:5], draws[5:8]), strict=True):
        top, left = min(row, SIZE - height), min(column, SIZE - width)
        copy = image.clone()
        copy[:, top : top + height, left : left + width] = torch.tensor(fill, dtype=image.dtype)[:, None, None]
        copies.append(copy)
    moved = target + r / (CLASSES - 1)
    moved[target.argmax()] = target.max() - r
    return copies[0], copies[1], moved


def features_and_logits(net, images):
    maps = net[:4](images)
    return maps, net[4:](maps)


def transcription(run, nets, decoders):
    """sanm.md section 3, line by line, in float64, on the batches of `run`."""
    half, steps_taken, sizes, shifts = run.batch_size // 2, 0, [], []
    for t in range(1, EPOCHS + 1):
        run.start_epoch(t, LR)
        if t <= WARMUP:
            for k, net in enumerate(nets):
                for batch in run.batches(stream=f"warmup{k}"):
                    net.zero_grad()
                    F.cross_entropy(net(batch.views[0].double()), batch.label).backward()
                    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                    with torch.no_grad():
                        for parameter in net.parameters():
                            parameter -= LR * parameter.grad
            continue
        everything = torch.cat([batch.views[0].double() for batch in run.train_in_order])
        probs = []
        for net in nets:
            net.eval()
            with torch.no_grad():
                probs.append(clean_probability(F.cross_entropy(net(everything), run.label, reduction="none")))
            net.train()
        for k, (net, peer) in enumerate((nets, nets[::-1])):
            w, decode = probs[1 - k], decoders[k]
            ids_x, ids_u = torch.arange(len(w))[w > 0.5], torch.arange(len(w))[w <= 0.5]
            sizes.append((len(ids_x), len(ids_u)))
            single_x, single_u = ends_in_one(ids_x, half), ends_in_one(ids_u, half)  # a batch norm of one row
            steps = math.ceil(len(ids_x) / half) - single_x
            lam, order = mixup_draws(run.seed, t, k, steps, 12 * half, 4.0, run.device)
            draws = uniform(run.seed, "erase_peaks", torch.arange(len(w)), 8, t, k)
            views = {"augment": (WEAK, WEAK, STRONG, STRONG, WEAK, WEAK), "batch_size": half}
            peer.eval()
            pairs = zip(
                run.batches(ids_x, stream=f"labelled{k}", drop_last=single_x, **views),
                run.cycle(ids_u, stream=f"unlabelled{k}", drop_last=single_u, **views),
                strict=False,
            )
            for i, (x, u) in enumerate(pairs):
                xv, uv = [[view.double() for view in batch.views] for batch in (x, u)]
                with torch.no_grad():
                    (map_u, z1), (_, z2) = features_and_logits(net, uv[4]), features_and_logits(net, uv[5])
                    q = (z1.softmax(1) + z2.softmax(1) + peer(uv[4]).softmax(1) + peer(uv[5]).softmax(1)) / 4
                    (map_x, z1), (_, z2) = features_and_logits(net, xv[4]), features_and_logits(net, xv[5])
                    wx = w[x.index][:, None]
                    mean = (z1.softmax(1) + z2.softmax(1)) / 2
                    target_x = sharpen(wx * F.one_hot(x.label, CLASSES) + (1 - wx) * mean)
                    target_u = sharpen(q)
                rows, targets, copies = [], [], []
                for batch, maps, target, unmasked in ((x, map_x, target_x, xv), (u, map_u, target_u, uv)):
                    made = [
                        erase(image, feature, t_row, w[n].item(), draws[n].tolist())
                        for image, feature, t_row, n in zip(unmasked[4], maps, target, batch.index, strict=True)
                    ]
                    high, low, moved = (torch.stack(part) for part in zip(*made, strict=True))
                    shifts.append((target - moved).abs().max().item())
                    rows.append(torch.cat((*unmasked[:4], high, low)))
                    targets.append(torch.cat((target, target, target, target, moved, moved)))
                    copies.append((high, low, unmasked[4]))
                high, low, original = (torch.cat(part) for part in zip(*copies, strict=True))
                decoded = decode(features_and_logits(net, torch.cat((high, low)))[0])
                n = len(original)
                l_rec = ((decoded[:n] - original) ** 2).mean() + ((decoded[n:] - original) ** 2).mean()

                inputs, goals, first = torch.cat(rows), torch.cat(targets), len(rows[0])
                other, share = order[i, : len(inputs)].argsort(), lam[i].double()
                logits = net(share * inputs + (1 - share) * inputs[other])
                goals = share * goals + (1 - share) * goals[other]
                p = logits.softmax(1)
                l_x = -(goals[:first] * logits[:first].log_softmax(1)).sum(1).mean()
                l_u = ((p[first:] - goals[first:]) ** 2).mean()
                prior = (1 / CLASSES * (1 / CLASSES / p.mean(0)).log()).sum()
                ramp = (t - 1 + i / steps - WARMUP) / 16
                loss = l_x + ramp * WEIGHT * l_u + prior + RECONSTRUCTION * l_rec
                plain_step(nn.ModuleList((net, decode)), loss, LR)
                steps_taken += 1
            peer.train()
    return steps_taken, sizes, shifts


@pytest.fixture(autouse=True)
def narrow_decoder(monkeypatch):
    monkeypatch.setattr("fastlnl.networks.decoder.HIDDEN", (8, 6))


def test_lockstep_with_transcription():
    run, second = build_run(), build_run()
    method = SANM(
        warmup_epochs=WARMUP, unlabeled_weight=WEIGHT, reconstruction_weight=RECONSTRUCTION, mask_ratio=RATIO,
        weak=WEAK, strong=STRONG,
    )  # fmt: skip
    method.setup(run)
    nets = [twin.double() for twin in twins_of(second)]
    decoders = [decoder((12, 4, 4), (3, SIZE, SIZE)).double() for _ in nets]
    for ours, theirs in zip(method.decoders, decoders, strict=True):
        theirs.load_state_dict(ours.state_dict())
    fit(method, run, lr=LR)
    steps, sizes, shifts = transcription(second, nets, decoders)
    assert steps >= 20
    assert all(min(pair) > 4 for pair in sizes)
    assert min(shifts) > 0.05  # the masks did cost the labels something
    assert_same_networks(run.networks, nets, atol=2e-5)
    assert_same_networks(method.decoders, decoders, atol=2e-5)
