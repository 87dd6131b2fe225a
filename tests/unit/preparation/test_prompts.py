"""Every prompt of a run is embedded once, and an error names unreadable input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from causvid.compute.precision import Precision
from causvid.data.captions import read_captions
from causvid.data.prompt_file import read_prompt_file
from causvid.data.stores.prompt_store import PromptStore
from causvid.data.videos.manifest import read_manifest
from causvid.preparation.prompts.config import PromptConfig
from causvid.preparation.prompts.encoding import encode_prompts
from causvid.training.pretrained import Init
from causvid.wan.text_encoder import build_text_encoder, build_tokenizer, embed, load_text_encoder

CONFIG = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
SCRATCH = Init(folder=Path("no such folder"), hub=None, revision=None)


def encode(
    world: Path,
    tmp_path: Path,
    *,
    name: str = "out",
    evaluation: str = "a red ball\n\n  a blue cube \n",
    **changes: Any,
) -> PromptStore:
    (tmp_path / "prompts.txt").write_text(evaluation, encoding="utf-8")
    (tmp_path / "empty").mkdir(exist_ok=True)
    values: dict[str, Any] = {
        "init": SCRATCH,
        "captions": world / "clips",
        "more_captions": tmp_path / "empty",
        "evaluation_prompts": tmp_path / "prompts.txt",
        "negative_prompt": "",
        **changes,
    }
    results = encode_prompts(
        PromptConfig(**values),
        tmp_path / name,
        tmp_path / f"{name}_encoder",
        text_encoder=CONFIG,
        tokens=8,
        precision=Precision.FLOAT32,
        seed=0,
    )
    assert results == {"prompts": 8 + 2 + 1, "evaluation_prompts": 2}
    return PromptStore(tmp_path / name)


def test_captions_evaluation_prompts_and_negative_prompt_are_embedded(world: Path, tmp_path: Path) -> None:
    store = encode(world, tmp_path)
    assert store.evaluation == ["a red ball", "a blue cube"]
    captions = [row["caption"] for row in read_manifest(world / "clips")]
    found = store([*captions, *store.evaluation, store.negative])
    assert found.shape == (11, 8, 8)
    assert len({row.numpy().tobytes() for row in found}) == 11
    assert torch.count_nonzero(found[-1, 1:]) == 0  # the empty prompt has one token


def test_the_negative_prompt_can_have_any_script(world: Path, tmp_path: Path) -> None:
    store = encode(world, tmp_path, negative_prompt="色调艳丽，过曝")
    assert store.negative == "色调艳丽，过曝"
    assert store([store.negative]).abs().sum() > 0


def test_two_runs_write_the_same_bytes(world: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        torch.manual_seed(len(name))
        encode(world, tmp_path, name=name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_an_encoder_in_the_init_folder_is_used(world: Path, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(["a red ball", "a blue cube"])
    tokenizer.save_pretrained(tmp_path / "model" / "tokenizer")
    build_text_encoder(CONFIG, len(tokenizer), seed=7).save_pretrained(tmp_path / "model" / "text_encoder")
    init = Init(folder=tmp_path / "model", hub=None, revision=None)
    theirs, ours = encode(world, tmp_path, name="theirs", init=init), encode(world, tmp_path, name="ours")
    assert not torch.equal(theirs(["a red ball"]), ours(["a red ball"]))


def test_the_saved_encoder_gives_the_same_embeddings(world: Path, tmp_path: Path) -> None:
    store = encode(world, tmp_path)
    folder = tmp_path / "out_encoder"
    encoder, tokenizer = load_text_encoder(folder / "text_encoder", folder / "tokenizer", torch.float32)
    (again,) = embed(encoder, tokenizer, ["a blue cube"], store.tokens)
    assert torch.equal(store(["a blue cube"])[0, : len(again)], again)
    init = Init(folder=folder, hub=None, revision=None)
    assert torch.equal(encode(world, tmp_path, name="again", init=init)(["a red ball"]), store(["a red ball"]))
    files = [path for name in ("out", "again") for path in (tmp_path / f"{name}_encoder").rglob("*.*")]
    assert len(files) == 8
    # no file contains an absolute path
    assert [path for path in files if str(tmp_path).encode() in path.read_bytes()] == []


@pytest.mark.parametrize("given", ["text_encoder", "tokenizer"])
def test_an_encoder_without_tokenizer_and_the_reverse_are_refused(world: Path, tmp_path: Path, given: str) -> None:
    """An encoder without its tokenizer cannot be used.

    A tokenizer without its encoder would be ignored without an error.
    """
    tokenizer = build_tokenizer(["a red ball"])
    encoder = build_text_encoder(CONFIG, len(tokenizer), seed=7)
    {"text_encoder": encoder, "tokenizer": tokenizer}[given].save_pretrained(tmp_path / "model" / given)
    marker = {"text_encoder": "tokenizer/tokenizer.json", "tokenizer": "text_encoder/config.json"}[given]
    init = Init(folder=tmp_path / "model", hub=None, revision=None)
    with pytest.raises(
        ValueError, match=rf"init.folder is .*model, which holds {given} but neither .*nor {marker}; give the folder"
    ):
        encode(world, tmp_path, init=init)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out_encoder").exists()


def test_an_encoder_folder_without_a_tokenizer_is_refused(world: Path, tmp_path: Path) -> None:
    build_text_encoder(CONFIG, 9, seed=7).save_pretrained(tmp_path / "alone")
    with pytest.raises(ValueError, match=r"alone, which holds config.json, .* but neither tokenizer.json nor"):
        encode(world, tmp_path, init=Init(folder=tmp_path / "alone", hub=None, revision=None))


@pytest.mark.parametrize("tokens", [0, -1, -512])
def test_less_than_one_token_is_refused(world: Path, tmp_path: Path, tokens: int) -> None:
    config = PromptConfig(
        init=SCRATCH, captions=world / "clips", more_captions=world / "clips",
        evaluation_prompts=tmp_path / "none.txt", negative_prompt="",
    )  # fmt: skip
    with pytest.raises(ValueError, match=rf"model.text_tokens is {tokens}; a prompt needs 1 token at least: set it to"):
        encode_prompts(
            config, tmp_path / "out", tmp_path / "kept",
            text_encoder=CONFIG, tokens=tokens, precision=Precision.FLOAT32, seed=0,
        )  # fmt: skip
    assert not (tmp_path / "kept").exists()


# --- sources of captions ----------------------------------------------------------------------------------------------


def test_captions_are_read_from_clips_an_lmdb_or_a_text_file(world: Path, tmp_path: Path) -> None:
    captions = [row["caption"] for row in read_manifest(world / "clips")]
    assert read_captions(world / "clips") == captions
    assert read_captions(world / "lmdb" / "latents") == captions
    (tmp_path / "prompts.txt").write_text("\n".join(captions), encoding="utf-8")
    assert read_captions(tmp_path / "prompts.txt") == captions


def test_more_captions_are_encoded_but_not_listed(world: Path, tmp_path: Path) -> None:
    """Training can use the prompts of a second LMDB, but ODE pairs use only the prompts of ``captions``."""
    (tmp_path / "first.txt").write_text("a red ball", encoding="utf-8")
    config = PromptConfig(
        init=SCRATCH, captions=tmp_path / "first.txt", more_captions=world / "lmdb" / "pairs",
        evaluation_prompts=tmp_path / "first.txt", negative_prompt="",
    )  # fmt: skip
    encode_prompts(
        config, tmp_path / "out", tmp_path / "kept",
        text_encoder=CONFIG, tokens=8, precision=Precision.FLOAT32, seed=0,
    )  # fmt: skip
    store = PromptStore(tmp_path / "out")
    store.require(read_captions(world / "lmdb" / "pairs"), world)
    assert store.captions == ["a red ball"]
    with pytest.raises(ValueError, match=r"encode_prompts.more_captions is .*none, which does not exist"):
        encode_prompts(
            replace(config, more_captions=tmp_path / "none"), tmp_path / "x", tmp_path / "y",
            text_encoder=CONFIG, tokens=8, precision=Precision.FLOAT32, seed=0,
        )  # fmt: skip


def test_a_missing_source_of_captions_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"encode_prompts.captions is .*, which has neither manifest.jsonl"):
        read_captions(tmp_path)
    with pytest.raises(ValueError, match=r"encode_prompts.captions is .*nothing, which does not exist"):
        read_captions(tmp_path / "nothing")
    (tmp_path / "data.mdb").write_bytes(b"no LMDB")
    with pytest.raises(ValueError, match=r"data.mdb is not a readable LMDB"):
        read_captions(tmp_path)


def test_missing_and_empty_prompt_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--prompts is .*none.txt, which does not exist"):
        read_prompt_file(tmp_path / "none.txt", "--prompts")
    (tmp_path / "empty.txt").write_text("\n  \n")
    with pytest.raises(ValueError, match=r"empty.txt, which holds no prompts"):
        read_prompt_file(tmp_path / "empty.txt", "--prompts")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.txt, which is not a UTF-8 text"):
        read_prompt_file(tmp_path / "latin.txt", "--prompts")


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"a red ball\ncaf\xe9 at sea\n", "byte 0xE9 in line 2"),
        ("один\nдва".encode("koi8-r"), "byte 0xCF in line 1"),
        ("a red ball\n".encode("utf-16"), "byte 0xFF in line 1"),
        (b"one\r\ntwo\r\nhalf \xed\xa0\xbd\r\n", "byte 0xED in line 3"),
    ],
)
def test_a_prompt_file_in_another_encoding_is_named_with_the_byte_and_its_line(
    tmp_path: Path, content: bytes, place: str
) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"--prompts is .*p.txt, which is not a UTF-8 text .*{place}\); save it as"):
        read_prompt_file(tmp_path / "p.txt", "--prompts")


def test_a_prompt_may_hold_any_character_but_the_end_of_a_line(world: Path, tmp_path: Path) -> None:
    lines = [
        "nul \x00 bell \x07 delete \x7f",
        "sep\u2028arators\u2029 of \u0085 lines \x1c\x0b\x0c inside",
        "ma\ufeffrk",
        "😀 emoji",
    ]
    (tmp_path / "p.txt").write_bytes("\r".join(lines).encode() + b"\r\n\n last \r")
    assert read_prompt_file(tmp_path / "p.txt", "--prompts") == [*lines, "last"]
    store = encode(world, tmp_path, evaluation="\n".join(lines[:2]), negative_prompt=lines[3])
    assert (store.evaluation, store.negative) == (lines[:2], lines[3])
    assert store([*store.evaluation, store.negative]).shape == (3, 8, 8)
