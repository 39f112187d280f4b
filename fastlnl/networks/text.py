"""Networks for texts: token ids (B, L), 0 is padding. What follows the last word has no influence on the logits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlnl.errors import ShapeError


class Embedding(nn.Embedding):
    """A vector for each token, drawn from U(-0.25, 0.25) (Kim 2014); that of padding is zero and stays zero."""

    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__(num_tokens, width, padding_idx=0)
        with torch.no_grad():
            self.weight.uniform_(-0.25, 0.25)[0] = 0

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.dim() != 2 or tokens.is_floating_point():
            raise ShapeError(
                f"tokens has shape {tuple(tokens.shape)} and type {tokens.dtype} but must be ids (B, L) of an integer "
                f"type; neither normalise texts nor augment them as images"
            )
        return super().forward(tokens)


def text_length(tokens: Tensor) -> Tensor:
    """(B, 1) int64, the words of each text: everything up to the last token that is not padding."""
    place = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    return (place * (tokens != 0)).amax(1, keepdim=True)


class TextCNN(nn.Module):
    """Convolutions over 3, 4 and 5 words, 100 filters each, maximum over time, dropout, one linear layer.

    Windows reach over both ends of the text, as in Kim's code, into zero vectors; those with no word of the text in
    them do not count.

    Args:
        num_tokens: size of the vocabulary, special tokens included.
        num_classes: C.
        embedding: numbers that stand for a word.
        widths: words in a window, one convolution each.
        filters: of each convolution.
        dropout: share of the features that is dropped while training.

    `forward` takes tokens (B, L) of an integer type and returns logits (B, C).

    Raises:
        ShapeError: tokens are floats or not (B, L).

    Source: Kim 2014, "CNN-rand".
    """

    def __init__(
        self,
        num_tokens: int,
        num_classes: int,
        *,
        embedding: int = 128,
        widths: tuple[int, ...] = (3, 4, 5),
        filters: int = 100,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.embedding = Embedding(num_tokens, embedding)
        self.convolutions = nn.ModuleList(nn.Conv1d(embedding, filters, w, padding=w - 1) for w in widths)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(filters * len(widths), num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        words, length = self.embedding(tokens).transpose(1, 2), text_length(tokens)  # (B, E, L), (B, 1)
        features = []
        for convolution in self.convolutions:
            response = F.relu(convolution(words))  # (B, filters, L + w - 1)
            place = torch.arange(response.shape[2], device=tokens.device)  # of a window's last word
            beyond = place >= length + (response.shape[2] - tokens.shape[1])  # length + w - 1
            features.append(response.masked_fill(beyond[:, None], 0).amax(2))
        return self.linear(self.dropout(torch.cat(features, 1)))


class BiLSTM(nn.Module):
    """One LSTM forwards and one backwards over the words, maximum over time, dropout, one linear layer.

    The backward one reads each text turned round within its own length, so both start at a word and no length has to be
    known to the host. A text without words has features -1. The LSTMs stay in the type of their weights under autocast:
    sums over time lose digits, and not every CPU has them in bfloat16.

    Args:
        num_tokens: size of the vocabulary, special tokens included.
        num_classes: C.
        embedding: numbers that stand for a word.
        hidden: units of each direction.
        dropout: share of the features that is dropped while training.

    `forward` takes tokens (B, L) of an integer type and returns logits (B, C).

    Raises:
        ShapeError: tokens are floats or not (B, L).

    Source: Graves and Schmidhuber 2005; maximum over time as in Conneau et al. 2017.
    """

    def __init__(
        self, num_tokens: int, num_classes: int, *, embedding: int = 128, hidden: int = 256, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.embedding = Embedding(num_tokens, embedding)
        self.onward = nn.LSTM(embedding, hidden, batch_first=True)
        self.reverse = nn.LSTM(embedding, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(2 * hidden, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        words, length = self.embedding(tokens), text_length(tokens)  # (B, L, E), (B, 1)
        place = torch.arange(tokens.shape[1], device=tokens.device)
        inside = place < length
        turned = torch.where(inside, length - 1 - place, place)  # (B, L)
        with torch.autocast(tokens.device.type, enabled=False):
            states = [self.onward(words)[0], self.reverse(self.embedding(tokens.gather(1, turned)))[0]]
        # -1 is the bound that no state reaches.
        features = torch.cat(states, 2).masked_fill(~inside[:, :, None], -1).amax(1)
        return self.linear(self.dropout(features))
