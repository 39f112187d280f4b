"""A stand-in for a CUDA graph on the CPU: the operations of a step, replayed on the tensors they were captured with.

As there, capturing runs nothing: what was written in place is put back. As there, Python is not asked again: a learning
rate that was a number when it was captured stays that number.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Operations(TorchDispatchMode):
    """Everything that is called, and what it wrote over."""

    def __init__(self):
        super().__init__()
        self.calls, self.before = [], []

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        keywords = keywords or {}
        given = (
            dict(zip((argument.name for argument in operator._schema.arguments), arguments, strict=False)) | keywords
        )
        for argument in operator._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.before += [(tensor, tensor.clone()) for tensor in tensors(given.get(argument.name))]
        result = operator(*arguments, **keywords)
        self.calls.append((operator, arguments, keywords, result))
        return result


class Recorded:
    made = 0

    def __init__(self, step):
        Recorded.made += 1
        with Operations() as operations:
            step()
        self.calls = operations.calls
        with torch.no_grad():
            for tensor, value in reversed(operations.before):
                tensor.copy_(value)

    @torch.no_grad()
    def replay(self):
        for operator, arguments, keywords, result in self.calls:
            for kept, new in zip(tensors(result), tensors(operator(*arguments, **keywords)), strict=True):
                if kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)

    @staticmethod
    def warm_up(step):
        step()
