"""Import and export checkpoints of the original CausVid code and of Wan2.1 (``model.pt`` with Wan's key names).

Format: a file that ``torch.save`` wrote with {"generator": state dict, "critic": state dict} or one bare state dict, or
a safetensors file with a bare state dict. An example of a key is ``model.blocks.0.self_attn.q.weight``; in some files,
all keys lack the prefix ``model.``. diffusers' Wan has the same layers under other names, so that the import and the
export only rename tensors.

``python -m causvid.interop.original_checkpoint import SRC DST --num-attention-heads N [--frames-per-block K]``
``python -m causvid.interop.original_checkpoint export SRC DST.pt``
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file

from causvid.interop.checkpoint_files import check_tensors, read_file, read_tensors
from causvid.interop.layouts import LAYOUT, entries_remedy, foreign_folder, require_wan_keys
from causvid.params import build
from causvid.runtime.files import publish, write_json
from causvid.wan.formats.weight_files import diffusers_files, require_all_weights, saved_class
from causvid.wan.released_names import count_blocks, infer_config, rename, transformer_keys, transformer_names
from causvid.wan.transformer.wan import CausalTransformer, Transformer

GENERATOR, CRITIC = "generator", "critic"
PREFIX = "model."


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Layout of a checkpoint file of the original code.

    Attributes:
        prefix: Prefix of all keys: "model." or "".
        sections: Top-level names in the file; empty for a bare state dict.
    """

    prefix: str
    sections: tuple[str, ...]


def read_original(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], Layout]:
    """Read the state dicts of a checkpoint file of the original code.

    Returns:
        A mapping from sections to state dicts, whose keys have no prefix ``model.``, and the layout. A bare state dict
        is mapped to the section of the generator.

    Raises:
        ValueError: The file is truncated, is not a checkpoint, contains other values than named floating-point tensors,
            or has an unsupported layout, which the message names.
    """
    content = read_file(path)
    bare = any(isinstance(value, torch.Tensor) for value in content.values())
    sections = {GENERATOR: content} if bare else content
    unknown = sorted(set(map(str, sections)) - {GENERATOR, CRITIC})
    if unknown or GENERATOR not in sections:
        raise ValueError(
            f"{path} has the entries {', '.join(sorted(map(str, content)))[:200] or 'none'}; expected {GENERATOR} and "
            f"optionally {CRITIC}, or the tensors of one model{entries_remedy(content, GENERATOR)}"
        )
    for section, state in sections.items():
        if not isinstance(state, Mapping):
            raise ValueError(f"{path}: {section} is a {type(state).__name__}; expected a state dict")
        check_tensors(f"{path}: {section}", state)
    keys = [key for state in sections.values() for key in state]
    prefixed = [key.startswith(PREFIX) for key in keys]
    if any(prefixed) and not all(prefixed):
        raise ValueError(f"{path}: {keys[prefixed.index(False)]!r} does not start with {PREFIX!r}, but other keys do")
    prefix = PREFIX if any(prefixed) else ""
    layout = Layout(prefix=prefix, sections=() if bare else tuple(sections))
    owned = {name: _own(state, prefix) for name, state in sections.items()}
    for section, state in owned.items():
        _require_transformer_keys(f"{path}: {section}", state)
    return owned, layout


def _require_transformer_keys(name: str, state: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError if ``state`` has no key of Wan's transformer, or has the keys of another known model."""
    require_wan_keys(name, state.keys())
    if not any(map(rename, state)):
        raise ValueError(
            f"{name} has {len(state)} keys ({', '.join(list(state)[:3]) or 'none'}), but no key of a Wan transformer; "
            "pass the file of the transformer"
        )


def fit(
    model: str,
    state: Mapping[str, torch.Tensor],
    theirs: Mapping[str, str],
    expected: Mapping[str, tuple[int, ...]],
) -> dict[str, torch.Tensor]:
    """Rename the tensors of a state dict from Wan's names to the names of diffusers or transformers.

    Args:
        model: Description of the model, for the error message.
        state: Maps Wan's names to tensors.
        theirs: Maps new names to Wan's names.
        expected: Maps new names to shapes.

    Raises:
        ValueError: Keys are missing or unknown, or shapes differ. The message lists up to five of these faults.
    """
    known = set(theirs.values())
    wrong = [f"missing {key}" for key in theirs.values() if key not in state]
    wrong += [f"unknown {key}" for key in state if key not in known]
    wrong += [
        f"{key} has shape {tuple(state[key].shape)}, expected {expected[ours]}"
        for ours, key in theirs.items()
        if key in state and tuple(state[key].shape) != expected[ours]
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(f"not the weights of {model}: {'; '.join(wrong[:5])}{more}")
    return {ours: state[key] for ours, key in theirs.items()}


def to_diffusers(
    state: Mapping[str, torch.Tensor], *, num_attention_heads: int, frames_per_block: int | None
) -> Transformer:
    """Build a frozen transformer in eval mode from ``state``, which maps Wan's names to weights. Dtypes are unchanged.

    The model is causal with blocks of ``frames_per_block`` latent frames, or bidirectional if this argument is None.
    Raises ValueError if keys are missing or unknown, or if the shapes of the weights contradict each other.
    """
    if frames_per_block is not None and frames_per_block < 1:
        raise ValueError(f"frames_per_block is {frames_per_block}; a block must have at least 1 latent frame")
    config = infer_config(state, num_attention_heads=num_attention_heads)
    with torch.device("meta"):
        model = (
            Transformer(**config)
            if frames_per_block is None
            else CausalTransformer(**config, frames_per_block=frames_per_block)
        )
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    weights = fit(
        "one text-to-video Wan transformer", state, transformer_names(model.state_dict(), len(model.blocks)), expected
    )
    model.load_state_dict(weights, strict=True, assign=True)
    # The tables of RoPE are buffers that no file contains. Without this line, they would remain on the meta device.
    model.rope = type(model.rope)(config["attention_head_dim"], tuple(config["patch_size"]), model.rope.max_seq_len)
    return model.requires_grad_(False).eval()


def load_generator(path: Path, *, num_attention_heads: int, frames_per_block: int, causal: bool = True) -> Transformer:
    """Load the generator of a checkpoint of the original code, in float32 and eval mode.

    The result is a ``CausalTransformer`` or, if ``causal`` is False, the bidirectional model of diffusers. Raises
    ValueError under the conditions of ``read_original`` and ``to_diffusers``.
    """
    sections, _ = read_original(path)
    blocks = frames_per_block if causal else None
    try:
        model = to_diffusers(sections[GENERATOR], num_attention_heads=num_attention_heads, frames_per_block=blocks)
    except ValueError as error:
        raise ValueError(f"{path}: {GENERATOR}: {error}") from error
    return model.float()


def import_checkpoint(source: Path, target: Path, *, num_attention_heads: int, frames_per_block: int | None) -> None:
    """Convert a checkpoint of the original code to the diffusers folder ``target``, with the same values and dtypes.

    A critic is written as a bidirectional model to ``target``/critic. The folder also stores the layout of the file,
    which ``export_checkpoint`` reads. Raises ValueError if ``source`` is invalid, and FileExistsError if ``target``
    exists.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists; choose another folder or remove it")
    sections, layout = read_original(source)
    building = target.with_name(f".{target.name}.importing")
    shutil.rmtree(building, ignore_errors=True)
    try:
        for section, state in sections.items():
            blocks = frames_per_block if section == GENERATOR else None
            try:
                model = to_diffusers(state, num_attention_heads=num_attention_heads, frames_per_block=blocks)
            except ValueError as error:
                raise ValueError(f"{source}: {section}: {error}") from error
            model.save_pretrained(building if section == GENERATOR else building / section)
        write_json(building / LAYOUT, asdict(layout))
        publish(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def export_checkpoint(source: Path, target: Path) -> None:
    """Convert a diffusers folder to ``target``, a checkpoint in the format of the original code.

    ``target`` is a .pt file, or a .safetensors file if there is no critic. If the folder was imported, ``target`` has
    the layout of the imported file; otherwise ``target`` contains {"generator": state dict} with the prefix ``model.``.
    Raises ValueError for an invalid ``source`` or a wrong suffix, and FileExistsError if ``target`` exists.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists; choose another name or remove it")
    if target.suffix not in (".pt", ".safetensors"):
        raise ValueError(f"{target}: the name of a released checkpoint must end in .pt or .safetensors")
    layout = _read_layout(source / LAYOUT)
    sections = {
        section: _to_original(source if section == GENERATOR else source / section, layout.prefix)
        for section in layout.sections or (GENERATOR,)
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.exporting")
    try:
        if target.suffix == ".safetensors":
            if len(sections) > 1:
                raise ValueError(f"{target} can hold only one model, but {source} has {', '.join(sections)}; use .pt")
            save_file(sections[GENERATOR], temporary)
        else:
            torch.save(sections if layout.sections else sections[GENERATOR], temporary)
        publish(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _read_layout(path: Path) -> Layout:
    if not path.is_file():
        return Layout(prefix=PREFIX, sections=(GENERATOR,))
    return build(Layout, json.loads(path.read_text(encoding="utf-8")), name=str(path))


def _own(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Remove ``prefix`` from the keys, and clone tensors that share memory, because safetensors cannot store these."""
    owned: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for key, value in state.items():
        owned[key[len(prefix) :]] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return owned


def _to_original(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Read a diffusers folder, and map Wan's names with ``prefix`` to weights, in the order of Wan's code."""
    _require_transformer(folder)
    state = {key: value for file in diffusers_files(folder) for key, value in read_tensors(file).items()}
    with torch.device("meta"):
        config = dict(Transformer.load_config(folder))
        config.pop("frames_per_block", None)  # the weights do not depend on frames_per_block
        empty = Transformer.from_config(config)
    theirs = transformer_names(empty.state_dict(), len(empty.blocks))
    unknown, missing = sorted(state.keys() - theirs.keys()), [ours for ours in theirs if ours not in state]
    if any(".base_layer." in key for key in unknown):
        require_all_weights(folder, missing=missing, unknown=unknown)
    if unknown:
        raise ValueError(f"{folder} has the weight {unknown[0]}, which a released checkpoint cannot contain")
    if missing:
        raise ValueError(f"{folder} lacks the weights {missing[0]} and {len(missing) - 1} more; save it again")
    ours = {key: name for name, key in theirs.items()}
    return {prefix + key: state[ours[key]] for key in transformer_keys(count_blocks(ours)) if key in ours}


def _require_transformer(folder: Path) -> None:
    """Raise ValueError if ``folder`` is not a diffusers folder of one transformer."""
    if folder.is_file():
        raise ValueError(f"{folder} is a file; export takes the diffusers folder of a transformer")
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist; export takes the diffusers folder of a transformer")
    if (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} is a diffusers pipeline; pass its transformer, {folder / 'transformer'}")
    if found := foreign_folder(folder):
        raise ValueError(f"{folder} is {found}; export takes the diffusers folder of a transformer")
    saved_class(folder, "diffusers transformer", (Transformer, CausalTransformer))


app = typer.Typer(add_completion=False, help="Import and export checkpoints of the original code (model.pt).")
Source = Annotated[Path, typer.Argument(metavar="SRC")]


@app.command("import")
def import_command(
    source: Source,
    target: Annotated[Path, typer.Argument(metavar="DST", help="diffusers folder to create")],
    num_attention_heads: Annotated[
        int, typer.Option(help="number of attention heads, which SRC does not store: 12 for Wan2.1 1.3B, 40 for 14B")
    ],
    frames_per_block: Annotated[
        int | None,
        typer.Option(help="latent frames per block of a causal student (original: 3); omit for a bidirectional model"),
    ] = None,
) -> None:
    """Convert a checkpoint of the original code (.pt or .safetensors) to a diffusers folder."""
    try:
        import_checkpoint(source, target, num_attention_heads=num_attention_heads, frames_per_block=frames_per_block)
    except (ValueError, OSError) as error:
        sys.exit(str(error))


@app.command("export")
def export_command(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="diffusers folder")],
    target: Annotated[Path, typer.Argument(metavar="DST.pt")],
) -> None:
    """Convert a diffusers folder to a checkpoint in the format of the original code."""
    try:
        export_checkpoint(source, target)
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    app()
