"""Transformer layers against torch's own, the image stem against its definition, small parts."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from small_act_jepa import MODEL
from torch import Tensor, nn

from reverie.world_models.chunk_heads import ChunkMLP, LatentPredictor
from reverie.world_models.image_stems import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ConvStack,
    ImageTokens,
    ResNet18,
)
from reverie.world_models.transformer import Attention, Block, Trunk, sine_grid, sine_positions

N, Q, S, D, HEADS, FFN = 3, 5, 7, 12, 3, 20


def shaken(module: nn.Module) -> nn.Module:
    """Weights that are nowhere 0 or 1, so that each one shows in the output."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return module


def as_torch(mine: Attention) -> nn.MultiheadAttention:
    theirs = nn.MultiheadAttention(D, mine.heads, batch_first=True)
    give(mine, theirs)
    return theirs


def give(mine: Attention, theirs: nn.MultiheadAttention) -> None:
    layers = [mine.project] + ([] if mine.memory is None else [mine.memory])
    assert theirs.in_proj_weight is not None
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        theirs.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
    theirs.out_proj.load_state_dict(mine.out.state_dict())


def padding(width: int) -> Tensor:
    """True where a key is ignored; the first key never is."""
    ignored = torch.rand(N, width, generator=torch.Generator().manual_seed(2)) < 0.4
    ignored[:, 0] = False
    assert ignored.any()
    return ignored


# attention


@torch.no_grad()
def test_attention_is_torchs_multi_head_attention() -> None:
    own, other = Attention(D, HEADS, cross=False), Attention(D, HEADS, cross=True)
    shaken(own), shaken(other)
    x, memory = torch.randn(N, Q, D), torch.randn(N, S, D)
    for ignored in (None, padding(Q)):
        mask = None if ignored is None else ~ignored[:, None, None, :]
        want = as_torch(own)(x, x, x, key_padding_mask=ignored)[0]
        torch.testing.assert_close(own(x, None, mask, 0.0), want)
    ignored = padding(S)
    want = as_torch(other)(x, memory, memory, key_padding_mask=ignored)[0]
    torch.testing.assert_close(other(x, memory, ~ignored[:, None, None, :], 0.0), want)


def encoder_layer(mine: Block, drop: float) -> nn.TransformerEncoderLayer:
    theirs = nn.TransformerEncoderLayer(D, HEADS, FFN, drop, batch_first=True)
    give(mine.attend, theirs.self_attn)
    give_rest(mine, theirs)
    return theirs


def give_rest(mine: Block, theirs: nn.Module) -> None:
    """MLP and norms; torch's biases are 0, as the block has none."""
    pairs = [(mine.grow, "linear1"), (mine.shrink, "linear2")]
    for layer, name in pairs:
        linear = theirs.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        with torch.no_grad():
            linear.weight.copy_(layer.weight)
            linear.bias.zero_()
    for number, norm in enumerate(mine.norms, 1):
        theirs.get_submodule(f"norm{number}").load_state_dict(norm.state_dict())


@pytest.mark.parametrize("drop", [0.0, 0.3])
@torch.no_grad()
def test_block_is_torchs_encoder_layer_dropout_included(drop: float) -> None:
    block = Block(D, FFN, HEADS)
    shaken(block)
    theirs, x, ignored = encoder_layer(block, drop), torch.randn(N, Q, D), padding(Q)
    if drop:  # torch puts the batch second, and draws in the order of memory
        x, ignored = x[:1], ignored[:1]
    torch.manual_seed(3)
    want = theirs(x, src_key_padding_mask=ignored)
    torch.manual_seed(3)
    found = block(x, mask=~ignored[:, None, None, :], drop=drop)
    torch.testing.assert_close(found, want)
    assert torch.equal(block(x), block(x)), "nothing is dropped unless asked for"
    assert (drop > 0) != torch.allclose(found, block(x, mask=~ignored[:, None, None, :]))


@pytest.mark.parametrize("drop", [0.0, 0.3])
@torch.no_grad()
def test_crossing_block_is_torchs_decoder_layer_dropout_included(drop: float) -> None:
    block = Block(D, FFN, HEADS, cross=True)
    shaken(block)
    assert block.look is not None
    theirs = nn.TransformerDecoderLayer(D, HEADS, FFN, drop, batch_first=True)
    give(block.attend, theirs.self_attn)
    give(block.look, theirs.multihead_attn)
    give_rest(block, theirs)
    batch = 1 if drop else N
    x, memory = torch.randn(batch, Q, D), torch.randn(batch, S, D)
    causal = torch.ones(Q, Q).tril().bool()
    torch.manual_seed(3)
    want = theirs(x, memory, tgt_mask=~causal)
    torch.manual_seed(3)
    torch.testing.assert_close(block(x, memory, mask=causal, drop=drop), want)


@torch.no_grad()
def test_trunk_is_a_stack_of_blocks_and_a_last_norm() -> None:
    trunk = Trunk(D, FFN, HEADS, 3)
    shaken(trunk)
    theirs = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(D, HEADS, FFN, 0.0, batch_first=True),
        3,
        nn.LayerNorm(D),
        enable_nested_tensor=False,
    )
    for mine, layer in zip(trunk.blocks, theirs.layers, strict=True):
        assert isinstance(mine, Block) and isinstance(layer, nn.TransformerEncoderLayer)
        give(mine.attend, layer.self_attn)
        give_rest(mine, layer)
    assert theirs.norm is not None
    theirs.norm.load_state_dict(trunk.norm.state_dict())
    x, ignored = torch.randn(N, Q, D), padding(Q)
    found = trunk(x, mask=~ignored[:, None, None, :])
    torch.testing.assert_close(found, theirs(x, src_key_padding_mask=ignored))


def test_heads_divide_the_width() -> None:
    with pytest.raises(ValueError, match="5 heads do not divide a width of 12"):
        Attention(12, 5, cross=True)


# positions


def test_sine_positions_are_those_of_the_paper() -> None:
    table = sine_positions(9, 6)
    for place in range(9):
        for pair in range(3):
            angle = place / 10_000 ** (2 * pair / 6)
            assert float(table[place, 2 * pair]) == pytest.approx(math.sin(angle), abs=1e-6)
            assert float(table[place, 2 * pair + 1]) == pytest.approx(math.cos(angle), abs=1e-6)
    with pytest.raises(ValueError, match="even width, found 5"):
        sine_positions(4, 5)


def test_sine_grid_says_the_row_and_then_the_column() -> None:
    grid = sine_grid(2, 3, 8).view(2, 3, 8)
    for row in range(2):
        for column in range(3):
            want = torch.cat([sine_positions(2, 4)[row], sine_positions(3, 4)[column]])
            assert torch.equal(grid[row, column], want), (row, column)
    assert len({tuple(place.tolist()) for place in grid.flatten(0, 1)}) == 6
    with pytest.raises(ValueError, match="divisible by 4, found 6"):
        sine_grid(2, 2, 6)


# the image stem


def test_resnet_has_torchvisions_names() -> None:
    state = ResNet18().state_dict()
    assert len(state) == 120, "122 of torchvision, less fc.weight and fc.bias"
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert [name for name in state if name.startswith("layer2.0.")] == [
        "layer2.0.conv1.weight",
        *(f"layer2.0.bn1.{name}" for name in norm),
        "layer2.0.conv2.weight",
        *(f"layer2.0.bn2.{name}" for name in norm),
        "layer2.0.downsample.0.weight",
        *(f"layer2.0.downsample.1.{name}" for name in norm),
    ]
    assert state["conv1.weight"].shape == (64, 3, 7, 7)
    assert state["layer4.1.conv2.weight"].shape == (512, 512, 3, 3)
    shortcuts = {name.partition(".downsample")[0] for name in state if "downsample" in name}
    assert shortcuts == {"layer2.0", "layer3.0", "layer4.0"}


def resnet_by_hand(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network in eval mode from its weights (He et al. 2016, table 1)."""

    def layer(x: Tensor, conv: str, norm: str, stride: int, pad: int) -> Tensor:
        x = F.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=pad)
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{norm}.{name}"] for name in names))

    x = F.max_pool2d(layer(x, "conv1", "bn1", 2, 3).relu(), 3, 2, 1)
    for stage in range(1, 5):
        for block in range(2):
            here, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = layer(x, f"{here}.conv1", f"{here}.bn1", stride, 1).relu()
            y = layer(y, f"{here}.conv2", f"{here}.bn2", 1, 1)
            if stride == 2:
                x = layer(x, f"{here}.downsample.0", f"{here}.downsample.1", 2, 0)
            x = (x + y).relu()
    return x


@torch.no_grad()
def test_resnet_computes_what_its_paper_says() -> None:
    torch.manual_seed(0)
    net, x = ResNet18(), torch.rand(2, 3, 72, 64)
    for _ in range(5):  # running statistics of its own, away from 0 and 1
        net(torch.rand(4, 3, 72, 64))
    found = net.eval()(x)
    assert found.shape == (2, 512, 3, 2) and bool((found > 0).any())
    torch.testing.assert_close(found, resnet_by_hand(net.state_dict(), x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("stem", "size", "tokens"),
    [("resnet18", 96, 9), ("resnet18", 128, 16), ("conv", 64, 16), ("conv", 84, 25)],
)
@torch.no_grad()
def test_tokens_per_image(stem: str, size: int, tokens: int) -> None:
    cfg = replace(MODEL, stem=stem)  # type: ignore[arg-type]
    net = ImageTokens(cfg, (size, size, 3)).eval()
    image = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    found = net(image)
    assert found.shape == (2, tokens, MODEL.width) and net.place.shape == (tokens, MODEL.width)
    # row by row: the grid's places are those of the map
    pixels = image.permute(0, 3, 1, 2) / 255
    grid = net.entry(net.stem(pixels)).permute(0, 2, 3, 1).reshape(2, tokens, -1)
    torch.testing.assert_close(found, grid + net.place)


@torch.no_grad()
def test_conv_stack_is_four_layers_of_stride_two() -> None:
    net = ConvStack(2, 4).eval()
    weights = [tuple(m.weight.shape) for m in net if isinstance(m, nn.Conv2d)]
    depths = [2, 4, 8, 16, 32]
    assert weights == [(after, before, 4, 4) for before, after in pairwise(depths)]
    assert net(torch.rand(1, 2, 33, 64)).shape == (1, 32, 2, 4) and net.channels == 32


def saved_resnet(path: Path) -> dict[str, Tensor]:
    """Weights as torchvision's file has them, the classifier's included."""
    torch.manual_seed(7)
    state = dict(ResNet18().state_dict())
    state["bn1.running_mean"] = torch.rand(64)
    classifier = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    save_file(state | classifier, path)
    return state


@torch.no_grad()
def test_weights_of_a_file_are_read_and_images_normalised_with_them(tmp_path: Path) -> None:
    state = saved_resnet(tmp_path / "resnet18.safetensors")
    cfg = replace(MODEL, stem="resnet18", stem_weights=str(tmp_path / "resnet18.safetensors"))
    net = ImageTokens(cfg, (32, 32, 3)).eval()
    for name, value in net.stem.state_dict().items():
        assert torch.equal(value, state[name]), name
    image = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    pixels = (image / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    tokens = net.entry(net.stem(pixels.permute(0, 3, 1, 2)))[..., 0, 0] + net.place[0]
    torch.testing.assert_close(net(image)[:, 0], tokens)


@pytest.mark.parametrize("damage", ["absent", "noise", "cut", "names", "shape"])
def test_a_wrong_weight_file_gives_one_clear_error(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    state = saved_resnet(path)
    if damage == "absent":
        path.unlink()
    elif damage == "noise":
        path.write_bytes(b"no weights at all")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "names":
        save_file({f"backbone.{name}": value for name, value in state.items()}, path)
    else:
        save_file(state | {"conv1.weight": torch.zeros(64, 4, 7, 7)}, path)
    with pytest.raises(ValueError, match=r"stem_weights: .*weights.safetensors holds no ResNet-18"):
        ImageTokens(replace(MODEL, stem="resnet18", stem_weights=str(path)), (32, 32, 3))


def test_stems_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resnet18 reads 3 channels, found 1"):
        ImageTokens(replace(MODEL, stem="resnet18"), (32, 32, 1))
    with pytest.raises(ValueError, match="only stem resnet18 has weights"):
        ImageTokens(replace(MODEL, stem_weights=str(tmp_path)), (32, 32, 3))


# what reads the context


@torch.no_grad()
def test_prediction_of_a_step_depends_on_the_actions_before_it_alone() -> None:
    cfg = replace(MODEL, action_conditioned=True, targets=("proprio", "state"))
    net = LatentPredictor(cfg, 3)
    shaken(net)
    context, action = torch.randn(N, 4, cfg.width), torch.randn(N, cfg.chunk, 3)
    before = net(context, action)
    assert before.shape == (N, cfg.chunk, 2, cfg.width)
    for moment in range(cfg.chunk):
        other = action.clone()
        other[:, moment] += 1.0
        after = net(context, other)
        assert torch.equal(after[:, : moment + 1], before[:, : moment + 1]), moment
        for later in range(moment + 1, cfg.chunk):
            changed = (after[:, later] - before[:, later]).abs().amax((0, 2))
            assert (changed > 1e-6).all(), (moment, later)


@torch.no_grad()
def test_an_unconditioned_prediction_reads_no_action() -> None:
    net = LatentPredictor(MODEL, 3)
    context = torch.randn(N, 4, MODEL.width)
    nothing = torch.full((N, MODEL.chunk, 3), math.nan)
    found = net(context, nothing)
    assert torch.isfinite(found).all() and net.action is None
    moved = net(context + 1.0, nothing)
    assert not torch.allclose(found, moved), "the context is read"


@torch.no_grad()
def test_behaviour_cloning_is_an_mlp_from_features_to_the_whole_chunk() -> None:
    net = ChunkMLP(replace(MODEL, mlp_layers=3), 10, 4)
    shaken(net)
    x = hidden = torch.randn(N, 10)
    for layer in net.hidden:
        hidden = layer(hidden).relu()
    assert len(net.hidden) == 3
    torch.testing.assert_close(net(x), net.action(hidden).view(N, MODEL.chunk, 4))
    torch.manual_seed(0)
    assert not torch.allclose(net(x, drop=0.5), net(x))
