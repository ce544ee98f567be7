"""In which order a model calls its layers, and where their outputs are added to earlier states."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from pgkmeans_sk.nn.call_order import CalledLayer, called_once, is_norm  # noqa: E402


class Block(nn.Module):
    """``x + second(relu(first(x)))`` with a norm in front or behind, or another one in between."""

    def __init__(self, kind, width=8):
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Linear(width, 16), nn.Linear(16, width)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout()

    def forward(self, x):
        if self.kind == "pre":
            return x + self.dropout(self.second(torch.relu(self.first(self.norm(x)))))
        y = self.dropout(self.second(torch.relu(self.first(x))))
        if self.kind == "in place":
            y += x
            return self.norm(y)
        if self.kind == "no sum":
            return self.norm(y)
        if self.kind == "scaled":
            return self.norm(2.0 * y + x)
        return self.norm(y + x)


def found_in(model, x, layers=None):
    layers = layers or [m for m in model.modules() if isinstance(m, nn.Linear)]
    with torch.random.fork_rng():
        return called_once(model.eval(), layers, lambda: model(x))


def inputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["post", "in place"])
def test_the_norm_behind_a_sum_is_found(kind):
    block = Block(kind)
    assert found_in(block, inputs(3, 5, 8)) == [
        CalledLayer(block.first),
        CalledLayer(block.second, block.norm),
    ]


def test_norms_in_front_are_those_of_the_next_block():
    blocks = nn.Sequential(Block("pre"), Block("pre"), nn.LayerNorm(8))
    found = found_in(blocks, inputs(3, 5, 8))
    assert [layer.norm for layer in found] == [None, blocks[1].norm, None, blocks[2]]


@pytest.mark.parametrize("kind", ["no sum", "scaled"])
def test_what_is_no_sum_of_output_and_state_is_none(kind):
    block = Block(kind)
    assert found_in(block, inputs(3, 5, 8)) == [CalledLayer(block.first), CalledLayer(block.second)]


def test_layers_come_in_the_order_of_calls_without_those_called_never_or_twice():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused, self.last, self.twice, self.first = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x):
            return self.last(self.twice(self.twice(self.first(x))))

    model = Odd()
    assert found_in(model, inputs(4, 8)) == [CalledLayer(model.first), CalledLayer(model.last)]


def test_only_layers_that_are_asked_for_are_listed_and_no_hooks_stay():
    block = Block("post")
    assert found_in(block, inputs(2, 8), [block.first]) == [CalledLayer(block.first)]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in block.modules())


def test_norms_are_known_by_their_names():
    class LlamaRMSNorm(nn.Module):
        pass

    assert is_norm(nn.BatchNorm2d(3))
    assert is_norm(LlamaRMSNorm())
    assert not is_norm(nn.Linear(2, 2))
