"""Import of Wan2.1's own files keeps names, shapes and results, and invalid files raise clear errors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import Unigram
from transformers import UMT5Config, UMT5EncoderModel

from causvid import params
from causvid.interop import original_wan
from causvid.wan import released_names
from causvid.wan.text_encoder import build_text_encoder, build_tokenizer, embed
from causvid.wan.vae.vae import build_vae, decode, encode
from tests.unit.interop.wan_files import PROMPTS, TEXT, VAE, State, text_shapes, vae_shapes, write_wan_folder

RELEASED: dict[str, Any] = params.read(Path(__file__).parents[3] / "profiles" / "wan-1.3b.yaml")["model"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder in Wan's own layout, with toy models."""
    write_wan_folder(tmp_path)
    return tmp_path


def read(path: Path) -> State:
    state: State = torch.load(path, weights_only=True)
    return state


# --- the VAE ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [VAE, RELEASED["vae"]], ids=["toy", "wan-1.3b"])
def test_every_key_of_wans_vae_maps_to_one_weight_of_the_same_shape(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        expected = {key: tuple(v.shape) for key, v in AutoencoderKLWan(**config).state_dict().items()}
    theirs = vae_shapes(config)
    assert len(theirs) == len(expected) == 194
    assert convert_wan_vae_to_diffusers(theirs) == expected


def test_the_vae_is_that_of_diffusers_with_the_values_of_the_file(folder: Path) -> None:
    vae = original_wan.load_vae(folder, VAE)
    state = read(folder / original_wan.VAE_FILE)
    ours = vae.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in convert_wan_vae_to_diffusers(state).items())
    assert not vae.training
    assert {(p.dtype, p.requires_grad, p.is_meta) for p in vae.parameters()} == {(torch.float32, False, False)}
    assert (vae.config.latents_mean, vae.config.latents_std) == (VAE["latents_mean"], VAE["latents_std"])
    reference = build_vae(VAE, 0)
    reference.load_state_dict(convert_wan_vae_to_diffusers(state), strict=True)
    reference.register_to_config(latents_mean=VAE["latents_mean"], latents_std=VAE["latents_std"])
    video = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = encode(vae, video)
    assert latents.shape == (1, 4, 2, 2, 2)
    torch.testing.assert_close(latents, encode(reference, video))
    torch.testing.assert_close(decode(vae, latents), decode(reference, latents))


def test_a_vae_of_another_dtype_becomes_float32_and_channels_last(folder: Path) -> None:
    path = folder / original_wan.VAE_FILE
    torch.save({key: value.bfloat16() for key, value in read(path).items()}, path)
    vae = original_wan.load_vae(folder, VAE)
    assert vae.dtype == torch.float32
    assert vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"latents_mean": None},
            r"model.vae.latents_mean has 0 numbers, but z_dim is 4; .*those of Wan are in profiles/wan-1.3b.yaml",
        ),
        ({"latents_std": [1.0]}, "model.vae.latents_std has 1 numbers, but z_dim is 4"),
        ({"base_dim": 16}, r"encoder.conv1.weight has shape \(8, 3, 3, 3, 3\), expected \(16, 3, 3, 3, 3\)"),
        ({"temperal_downsample": [True, True, False]}, "unknown encoder.downsamples.8.time_conv.weight"),
    ],
)
def test_a_config_that_contradicts_the_vae_is_an_error(change: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        original_wan.load_vae(folder, {**VAE, **change})


# --- the text encoder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{**TEXT, "vocab_size": 10}, RELEASED["text_encoder"]], ids=["toy", "wan-1.3b"])
def test_every_key_of_wans_text_encoder_maps_to_one_weight_of_the_same_shape(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        encoder = UMT5EncoderModel(UMT5Config(**config))
    expected = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    names, theirs = released_names.text_encoder_names(config["num_layers"]), text_shapes(config)
    assert sorted(names.values()) == sorted(theirs)
    assert expected.pop("encoder.embed_tokens.weight") == expected["shared.weight"]
    assert {ours: theirs[key] for ours, key in names.items()} == expected


def bucket(distance: int) -> int:
    """Return the T5 bucket of a relative position.

    For each sign, 8 buckets have exact distances, and 8 buckets have distances in steps of a factor sqrt(2) up to 128.
    """
    size = abs(distance)
    place = size if size < 8 else min(15, 8 + (size * size // 64).bit_length() - 1)
    return place + (16 if distance > 0 else 0)


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight * x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def wan_text_encoder(state: State, ids: list[int]) -> torch.Tensor:
    """Return the embeddings [L, D] of one prompt without padding in float64, by the equations of wan/modules/t5.py."""
    state = {key.removesuffix(".weight"): value.double() for key, value in state.items()}
    x = state["token_embedding"][ids]
    buckets = torch.tensor([[bucket(key - query) for key in range(len(ids))] for query in range(len(ids))])
    for index in range(TEXT["num_layers"]):
        block = {key.removeprefix(f"blocks.{index}."): value for key, value in state.items()}
        h = normed(x, block["norm1"])
        heads = (h @ block[f"attn.{part}"].T for part in "qkv")
        query, key, value = (part.unflatten(1, (TEXT["num_heads"], TEXT["d_kv"])).transpose(0, 1) for part in heads)
        # T5 does not divide scores by sqrt(d)
        scores = query @ key.mT + block["pos_embedding.embedding"][buckets].movedim(2, 0)
        x = x + (scores.softmax(dim=-1) @ value).transpose(0, 1).flatten(1) @ block["attn.o"].T
        h = normed(x, block["norm2"])
        x = x + (gelu(h @ block["ffn.gate.0"].T) * (h @ block["ffn.fc1"].T)) @ block["ffn.fc2"].T
    return normed(x, state["norm"])


def test_the_text_encoder_gives_the_embeddings_of_wans_code(folder: Path) -> None:
    """A prompt of 300 tokens has relative positions in every bucket."""
    encoder, tokenizer = original_wan.load_text_encoder(folder, TEXT, torch.float32)
    state = read(folder / original_wan.TEXT_ENCODER_FILE)
    ids = torch.randint(len(tokenizer), (300,), generator=torch.Generator().manual_seed(2)).tolist()
    expected = wan_text_encoder(state, ids)
    torch.testing.assert_close(encoder(torch.tensor([ids])).last_hidden_state[0].double(), expected, rtol=0, atol=1e-5)
    swapped = {**state, "blocks.0.ffn.gate.0.weight": state["blocks.0.ffn.fc1.weight"]}
    assert (wan_text_encoder(swapped, ids) - expected).abs().max() > 0.01, "swapped factors give the same result"
    for prompt, embedding in zip(PROMPTS, embed(encoder, tokenizer, PROMPTS, tokens=12), strict=True):
        expected = wan_text_encoder(state, tokenizer(prompt)["input_ids"])
        torch.testing.assert_close(embedding.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_text_encoder_has_the_values_of_the_file(dtype: torch.dtype, folder: Path) -> None:
    encoder, tokenizer = original_wan.load_text_encoder(folder, {**TEXT, "vocab_size": 10}, dtype)
    assert isinstance(encoder, UMT5EncoderModel)
    assert tokenizer("a red cube")["input_ids"] == build_tokenizer(PROMPTS)("a red cube")["input_ids"]
    state, ours = read(folder / original_wan.TEXT_ENCODER_FILE), encoder.state_dict()
    names = released_names.text_encoder_names(TEXT["num_layers"])
    assert all(torch.equal(ours[name], state[key].to(dtype)) for name, key in names.items())
    assert encoder.encoder.embed_tokens.weight is encoder.shared.weight
    assert not encoder.training
    assert {(p.dtype, p.requires_grad, p.is_meta) for p in encoder.parameters()} == {(dtype, False, False)}
    reference = build_text_encoder(TEXT, 10, seed=0).to(dtype)
    reference.load_state_dict(ours, strict=True)
    ids = torch.arange(10)[None]
    assert torch.equal(encoder(ids).last_hidden_state, reference(ids).last_hidden_state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 3}, "missing blocks.2.norm1.weight"),
        ({"num_layers": 1}, "unknown blocks.1.norm1.weight"),
        ({"d_model": 8}, r"token_embedding.weight has shape \(10, 16\), expected \(10, 8\)"),
        ({"num_heads": 2, "d_kv": 6}, r"pos_embedding.embedding.weight has shape \(32, 3\), expected \(32, 2\)"),
        ({"vocab_size": 11}, r"token_embedding.weight has shape \(10, 16\), expected \(11, 16\)"),
        ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon is 1e-05; Wan's text encoder needs 1e-06"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj is gated-silu; .* needs gated-gelu"),
    ],
)
def test_a_config_that_contradicts_the_text_encoder_is_an_error(
    change: dict[str, Any], message: str, folder: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        original_wan.load_text_encoder(folder, {**TEXT, **change}, torch.float32)


def test_unknown_characters_have_the_token_id_of_umt5(folder: Path) -> None:
    """The unknown token has id 2 in T5Tokenizer, which tokenizer_config.json names, and id 3 in UMT5."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("a", -3.0)]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens([name for name, _ in pieces[:4]])
    tokenizer.save(str(folder / original_wan.TOKENIZER_FOLDER / "tokenizer.json"))
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "unk")}
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "bos_token": "<s>", "eos_token": "</s>", **special}
    (folder / original_wan.TOKENIZER_FOLDER / "tokenizer_config.json").write_text(json.dumps(config))
    _, loaded = original_wan.load_text_encoder(folder, TEXT, torch.float32)
    assert loaded("a 👾")["input_ids"] == [4, 5, 4, 3]
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.unk_token_id) == (0, 1, 3)


# --- the folder of Wan2.1 ---------------------------------------------------------------------------------------------


def components(folder: Path) -> original_wan.Components:
    return original_wan.load_components(folder, vae_config=VAE, text_config=TEXT, dtype=torch.bfloat16)


def test_both_layouts_give_the_same_components(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    first = components(folder)
    other = tmp_path_factory.mktemp("diffusers")
    first.vae.save_pretrained(other / "vae")
    first.text_encoder.save_pretrained(other / "text_encoder")
    first.tokenizer.save_pretrained(other / "tokenizer")
    assert (original_wan.is_original(folder), original_wan.is_original(other)) == (True, False)
    again = components(other)
    assert again.vae.dtype == first.vae.dtype == torch.float32
    assert again.vae.config.latents_std == first.vae.config.latents_std
    assert again.text_encoder.dtype == first.text_encoder.dtype == torch.bfloat16
    for before, after in ((first.vae, again.vae), (first.text_encoder, again.text_encoder)):
        states = before.state_dict(), after.state_dict()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0].keys() | states[1].keys())
    one, two = (embed(c.text_encoder, c.tokenizer, PROMPTS, tokens=8) for c in (first, again))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("name", original_wan._ORIGINAL)
def test_the_error_names_a_missing_file(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"lacks the files {re.escape(name)} of Wan2.1; download"):
        components(folder)


def test_a_folder_in_neither_layout_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").touch()
    with pytest.raises(
        ValueError,
        match=r"lacks the files text_encoder/config.json, tokenizer/tokenizer_config.json, .* has neither Wan2.1_V",
    ):
        components(tmp_path)
    with pytest.raises(ValueError, match="lacks the files vae/config.json"):
        components(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="umt5-xxl lacks the files tokenizer_config.json, tokenizer.json; download"):
        original_wan.load_text_encoder(tmp_path, TEXT, torch.float32)


FILES = [original_wan.VAE_FILE, original_wan.TEXT_ENCODER_FILE]


@pytest.mark.parametrize("name", FILES)
def test_the_error_names_a_truncated_file(name: str, folder: Path) -> None:
    content = (folder / name).read_bytes()
    for size in (0, 1, 100, len(content) // 2, len(content) - 1):
        (folder / name).write_bytes(content[:size])
        with pytest.raises(ValueError, match=f"{re.escape(name)} is truncated, or is not a checkpoint"):
            components(folder)


def test_the_error_names_a_truncated_tokenizer(folder: Path) -> None:
    path = folder / original_wan.TOKENIZER_FOLDER / "tokenizer.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match="umt5-xxl has no complete tokenizer"):
        components(folder)


def without(name: str) -> Callable[[State], Any]:
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (FILES[0], without("conv1.bias"), r"missing quant_conv.bias \(diffusers' name\)"),
        (FILES[0], lambda s: {**s, "conv3.bias": torch.ones(1)}, "unknown conv3.bias"),
        (FILES[0], lambda s: {**s, "quant_conv.bias": torch.ones(8)}, "unknown conv1.bias"),
        (FILES[0], lambda s: {**s, "decoder.upsamples.x.shortcut.bias": torch.ones(1)}, "unknown decoder.upsamples.x"),
        (FILES[0], lambda s: {**s, "conv2.bias": torch.ones(3)}, r"conv2.bias has shape \(3,\), expected \(4,\)"),
        (FILES[1], without("blocks.1.attn.q.weight"), "missing blocks.1.attn.q.weight"),
        (FILES[1], without("token_embedding.weight"), "missing token_embedding.weight"),
        (FILES[1], lambda s: {**s, "pos_embedding.embedding.weight": torch.ones(1)}, "unknown pos_embedding.embedding"),
        (FILES[1], lambda s: {**s, "token_embedding.weight": torch.ones(3)}, r"has shape \(3,\), expected"),
    ],
)
def test_the_error_names_a_wrong_key(name: str, change: Callable[[State], Any], message: str, folder: Path) -> None:
    torch.save(change(read(folder / name)), folder / name)
    with pytest.raises(ValueError, match=message) as error:
        components(folder)
    assert str(folder / name) in str(error.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {}}, "has 'model' of type dict; expected a floating-point tensor"),
        ({"ids": torch.ones(2, dtype=torch.long)}, "has 'ids' of type torch.int64"),
        ([1], "contains a list"),
        ({"code": Path("/etc")}, "not a checkpoint that contains only tensors"),
    ],
)
def test_the_error_names_a_file_with_other_content(name: str, content: Any, message: str, folder: Path) -> None:
    torch.save(content, folder / name)
    with pytest.raises(ValueError, match=f"{re.escape(name)} .*{message}"):
        components(folder)
