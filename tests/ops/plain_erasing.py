"""erase_peaks written plainly: image after image, the map in float64, where equal pixels stay equal."""

import torch
import torch.nn.functional as F


def peaks_of(feature, size, quantise=True, number=torch.float64):
    """Rows and columns of the highest and lowest point of one map (Cf, h, w), as a loop over images would find them."""
    attention = feature.double().square().sum(0).float().to(number)
    attention = attention / attention.square().sum().sqrt().clamp(min=1e-12)
    v = F.interpolate(attention[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    v = (v - v.min()).float()
    if quantise:
        v = (255 * (v / (v.max() + 1e-12))).floor().byte()
    flat = v.flatten().tolist()
    return [divmod(flat.index(extreme), size[1]) for extreme in (max(flat), min(flat))]


def box_of(peak, ratio, rho, size, masking):
    height, width = size
    area = masking.area_factor * ratio * height * width
    tall = min(round((area * rho) ** 0.5), height - 1)
    wide = min(round((area / rho) ** 0.5), width - 1)
    top, left = peak
    if masking.mask_anchor == "center":
        top, left = max(top - tall // 2, 0), max(left - wide // 2, 0)
    return [min(top, height - tall), min(left, width - wide), tall, wide]


def moved(target, ratio, floor):
    t, classes = target.double().clone(), len(target)
    k = t.tolist().index(max(t.tolist()))
    r = min(ratio, max(0.0, float(t[k]) - 1 / classes)) if floor == "clamp" else ratio
    out = t + r / (classes - 1)
    out[k] = t[k] - r
    if floor == "clip":
        out = out.clamp(min=0)
        out = out / out.sum()
    return out


def plain(features, images, target, clean_prob, draws, masking, black=None):
    """Peaks, boxes, both images and both targets of a batch."""
    channels, size = images.shape[1], tuple(images.shape[2:])
    low, high, distrust = masking.mask_ratio
    out = []
    for b, image in enumerate(images):
        peaks, boxes, pair, targets = peaks_of(features[b], size, masking.quantise_attention), [], [], []
        for i in range(2):
            at = 2 + 2 * channels if masking.separate_low_box and i else 0
            u, rho = float(draws[b, at]), 0.8 + 0.45 * float(draws[b, at + 1])
            ratio = low + (high - low) * u + distrust * (1 - float(clean_prob[b]))
            boxes.append(box_of(peaks[i], ratio, rho, size, masking))
            top, left, tall, wide = boxes[-1]
            fill = draws[b, 2 + i * channels : 2 + (i + 1) * channels].float()
            if masking.mask_fill != "uniform_normalised":
                fill = torch.zeros(channels) if black is None else black
            pair.append(image.clone())
            pair[-1][:, top : top + tall, left : left + wide] = fill[:, None, None].to(image.dtype)
            targets.append(moved(target[b], ratio, masking.target_floor))
        out.append((torch.tensor(peaks), torch.tensor(boxes), *pair, *targets))
    return [torch.stack(column) for column in zip(*out, strict=True)]
