"""IndexedDataset: ids beside items of every shape, through loaders, workers and subsets."""

import copy
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from fastlnl.data import IndexedDataset

N = 23
LABEL = torch.arange(N) % 5
PAIRS = TensorDataset(torch.arange(N).float()[:, None], LABEL)
DICTS = [{"pixel_values": torch.tensor([float(i)]), "labels": i % 5} for i in range(N)]


class Batched(TensorDataset):
    """Serves whole batches, and counts how often it was asked to."""

    calls = 0

    def __getitems__(self, indices):
        self.calls += 1
        return [self[i] for i in indices]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_id_comes_once_with_its_own_item(workers):
    loader = DataLoader(IndexedDataset(PAIRS), batch_size=4, shuffle=True, num_workers=workers)
    image, label, index = (torch.cat(column) for column in zip(*loader, strict=True))
    assert index.sort().values.tolist() == list(range(N))
    assert torch.equal(image[:, 0].long(), index)
    assert torch.equal(label, LABEL[index])


def test_mappings_get_an_entry():
    for batch in DataLoader(IndexedDataset(DICTS, key="sample_id"), batch_size=5):
        assert torch.equal(batch["pixel_values"][:, 0].long(), batch["sample_id"])
    assert "sample_id" not in DICTS[0]
    with pytest.raises(ValueError, match=r"entry 'labels' already; choose another: .*key="):
        IndexedDataset(DICTS, key="labels")[0]


def test_other_items_become_pairs_and_lists_are_tuples():
    assert IndexedDataset(["a", "b"])[1] == ("b", 1)
    assert IndexedDataset([[1, 2]])[0] == (1, 2, 0)
    assert IndexedDataset(["a", "b"])[-1] == ("b", 1)


def test_whole_batches_are_asked_for_where_the_data_set_serves_them():
    dataset = Batched(*PAIRS.tensors)
    batches = list(DataLoader(IndexedDataset(dataset), batch_size=4))
    assert dataset.calls == len(batches) == 6
    assert torch.cat([index for _, _, index in batches]).tolist() == list(range(N))
    assert not hasattr(IndexedDataset(DICTS), "__getitems__")


def test_a_subset_outside_keeps_ids_and_one_inside_counts_anew():
    chosen = [7, 3, 20]
    outside, inside = Subset(IndexedDataset(PAIRS), chosen), IndexedDataset(Subset(PAIRS, chosen))
    assert [outside[i][2] for i in range(3)] == chosen
    assert [inside[i][2] for i in range(3)] == [0, 1, 2]
    assert inside[2][0] == outside[2][0] == 20


def test_copies_work():
    dataset = IndexedDataset(Batched(*PAIRS.tensors))
    for copied in (copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
        assert copied.__getitems__([4])[0][2] == 4
        assert copied.dataset.calls == 1
    assert dataset.dataset.calls == 0


def test_a_stream_is_refused_with_advice():
    class Stream(IterableDataset):
        def __iter__(self):
            yield 1

    with pytest.raises(TypeError, match=r"Stream has no __getitem__ and __len__.*KeyTable"):
        IndexedDataset(Stream())
