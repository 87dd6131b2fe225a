"""Checkpoints of the released CausVid and Wan2.1 (``model.pt``, key names of Wan's own code), in and out.

Format: ``torch.save`` of {"generator": state dict, "critic": state dict} with keys like
``model.blocks.0.self_attn.q.weight``, or one bare state dict with or without ``model.``; the same keys in a safetensors
file. The layers are those of diffusers' Wan under other names, so values go through untouched.

``python -m causvid.interop.original_checkpoint import SRC DST --num-attention-heads N [--frames-per-block K]``
``python -m causvid.interop.original_checkpoint export SRC DST.pt``
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from causvid.interop.checkpoint_files import check_tensors, read_file, read_tensors
from causvid.interop.layouts import entries_remedy, foreign_folder, require_wan_keys
from causvid.params import build
from causvid.runtime.files import publish, write_json
from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel
from causvid.wan.weight_files import diffusers_files, require_all_weights, saved_class

GENERATOR, CRITIC = "generator", "critic"
PREFIX = "model."
LAYOUT = "original_layout.json"  # beside an imported model: how the file it came from was laid out

# Wan's name → diffusers' name. Modules keep ".weight" and ".bias"; tables are bare parameters.
_MODULES = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}
_TABLES = {"head.modulation": "scale_shift_table"}
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_BLOCK_MODULES = {
    **{f"self_attn.{theirs}": f"attn1.{ours}" for theirs, ours in _ATTENTION.items()},
    "norm3": "norm2",  # the one norm with weights, before cross-attention
    **{f"cross_attn.{theirs}": f"attn2.{ours}" for theirs, ours in _ATTENTION.items()},
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
_BLOCK_TABLES = {"modulation": "scale_shift_table"}


def rename(key: str) -> str | None:
    """Diffusers' name of the tensor that Wan's code calls ``key`` (without ``model.``); None for a name Wan has not."""
    if key in _TABLES:
        return _TABLES[key]
    block = re.fullmatch(r"blocks\.(0|[1-9]\d*)\.(.+)", key)
    name, modules, before = (block[2], _BLOCK_MODULES, f"blocks.{block[1]}.") if block else (key, _MODULES, "")
    if block and name in _BLOCK_TABLES:
        return before + _BLOCK_TABLES[name]
    module, _, parameter = name.rpartition(".")
    if parameter not in ("weight", "bias") or module not in modules:
        return None
    return f"{before}{modules[module]}.{parameter}"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a file was laid out. prefix: "model." or ""; sections: its top-level names, none for a bare state dict."""

    prefix: str
    sections: tuple[str, ...]


def read_original(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], Layout]:
    """Read the state dicts of a released file.

    Args:
        path: A file of ``torch.save``, or a safetensors file.

    Returns:
        The state dicts by section (a bare one as the generator), their keys without ``model.``; and the file's layout.

    Raises:
        ValueError: If the file is cut short, is no checkpoint, holds anything but named floating-point tensors, or has
            another layout than the released one. The error names the layout.
    """
    found = read_file(path)
    bare = any(isinstance(value, torch.Tensor) for value in found.values())
    sections = {GENERATOR: found} if bare else found
    unknown = sorted(set(map(str, sections)) - {GENERATOR, CRITIC})
    if unknown or GENERATOR not in sections:
        raise ValueError(
            f"{path} has the entries {', '.join(sorted(map(str, found)))[:200] or 'none'}; expected {GENERATOR} (and "
            f"perhaps {CRITIC}), or the tensors themselves{entries_remedy(found, GENERATOR)}"
        )
    for section, state in sections.items():
        if not isinstance(state, Mapping):
            raise ValueError(f"{path}: {section} is a {type(state).__name__}, not a state dict")
        check_tensors(f"{path}: {section}", state)
    keys = [key for state in sections.values() for key in state]
    prefixed = [key.startswith(PREFIX) for key in keys]
    if any(prefixed) and not all(prefixed):
        raise ValueError(f"{path}: {keys[prefixed.index(False)]!r} does not start with {PREFIX!r}, other keys do")
    prefix = PREFIX if any(prefixed) else ""
    layout = Layout(prefix=prefix, sections=() if bare else tuple(sections))
    owned = {name: _own(state, prefix) for name, state in sections.items()}
    for section, state in owned.items():
        _require_transformer_keys(f"{path}: {section}", state)
    return owned, layout


def _require_transformer_keys(name: str, state: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError, naming another layout or model, unless keys of ``state`` are those of Wan's transformer."""
    require_wan_keys(name, state.keys())
    if not any(map(rename, state)):
        raise ValueError(
            f"{name} has {len(state)} keys ({', '.join(list(state)[:3]) or 'none'}), none of them of a Wan "
            "transformer; give the file of the transformer"
        )


def fit(
    model: str,
    state: Mapping[str, torch.Tensor],
    theirs: Mapping[str, str],
    expected: Mapping[str, tuple[int, ...]],
) -> dict[str, torch.Tensor]:
    """``state`` (Wan's keys) under our names: ``theirs`` is our name → Wan's, ``expected`` our name → shape.

    Raises ValueError naming ``model`` and every key that is missing, that has no place, or that has another shape.
    """
    places = set(theirs.values())
    wrong = [f"missing {key}" for key in theirs.values() if key not in state]
    wrong += [f"unknown {key}" for key in state if key not in places]
    wrong += [
        f"{key} has shape {tuple(state[key].shape)}, expected {expected[ours]}"
        for ours, key in theirs.items()
        if key in state and tuple(state[key].shape) != expected[ours]
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(f"not the weights of {model}: {'; '.join(wrong[:5])}{more}")
    return {ours: state[key] for ours, key in theirs.items()}


def infer_config(state: Mapping[str, torch.Tensor], *, num_attention_heads: int) -> dict[str, Any]:
    """Diffusers' config of the Wan transformer that ``state`` (Wan's keys) belongs to.

    Only the number of heads leaves no trace in the shapes. Raises ValueError for a key without which nothing can be
    inferred, and for a head count that does not fit the width.
    """
    patch = _shaped(state, "patch_embedding.weight", 5)
    width, channels, *patch_size = patch
    head_dim, rest = divmod(width, num_attention_heads) if num_attention_heads > 0 else (0, 1)
    if rest or head_dim % 2:
        raise ValueError(
            f"num_attention_heads is {num_attention_heads}; the width {width} (of patch_embedding.weight) must divide "
            "into heads of an even size"
        )
    patch_elements = patch_size[0] * patch_size[1] * patch_size[2]
    return {
        "patch_size": tuple(patch_size),
        "num_attention_heads": num_attention_heads,
        "attention_head_dim": head_dim,
        "in_channels": channels,
        "out_channels": _shaped(state, "head.head.weight", 2)[0] // patch_elements,
        "text_dim": _shaped(state, "text_embedding.0.weight", 2)[1],
        "freq_dim": _shaped(state, "time_embedding.0.weight", 2)[1],
        "ffn_dim": _shaped(state, "blocks.0.ffn.0.weight", 2)[0],
        "num_layers": _count_blocks(state),
        "cross_attn_norm": any(".norm3." in key for key in state),
        "qk_norm": "rms_norm_across_heads" if any(".norm_q." in key for key in state) else None,
    }


def to_diffusers(
    state: Mapping[str, torch.Tensor], *, num_attention_heads: int, frames_per_block: int | None
) -> WanTransformer3DModel:
    """The model whose weights ``state`` (Wan's keys) holds, values and dtypes untouched, in eval mode.

    Causal with blocks of ``frames_per_block``; None = bidirectional. Raises ValueError naming every key that is
    missing, that Wan has not, or that has another shape than the rest of the file implies.
    """
    if frames_per_block is not None and frames_per_block < 1:
        raise ValueError(f"frames_per_block is {frames_per_block}; a block has at least 1 latent frame")
    config = infer_config(state, num_attention_heads=num_attention_heads)
    with torch.device("meta"):
        model = (
            WanTransformer3DModel(**config)
            if frames_per_block is None
            else CausalWanTransformer3DModel(**config, frames_per_block=frames_per_block)
        )
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    weights = fit("one text-to-video Wan transformer", state, _names(model), expected)
    model.load_state_dict(weights, strict=True, assign=True)
    # Buffers that are no weights (RoPE's tables) are still on the meta device: a new model makes them.
    model.rope = type(model.rope)(config["attention_head_dim"], tuple(config["patch_size"]), model.rope.max_seq_len)
    return model.requires_grad_(False).eval()


def load_generator(
    path: Path, *, num_attention_heads: int, frames_per_block: int, causal: bool = True
) -> WanTransformer3DModel:
    """The generator of a released checkpoint: our causal student, or diffusers' bidirectional model.

    float32, eval mode. Raises ValueError as ``read_original`` and ``to_diffusers`` do.
    """
    sections, _ = read_original(path)
    blocks = frames_per_block if causal else None
    try:
        model = to_diffusers(sections[GENERATOR], num_attention_heads=num_attention_heads, frames_per_block=blocks)
    except ValueError as error:
        raise ValueError(f"{path}: {GENERATOR}: {error}") from error
    return model.float()


def import_checkpoint(source: Path, target: Path, *, num_attention_heads: int, frames_per_block: int | None) -> None:
    """Write ``source``'s generator as the diffusers folder ``target``, its critic (bidirectional) as ``target``/critic.

    Every value keeps its bits and its dtype; how the file was laid out is kept beside, so that ``export_checkpoint``
    gives it back. Raises ValueError for a bad file, FileExistsError when ``target`` is there.
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
    """Write the diffusers folder ``source`` (ours, or an imported one) as a released checkpoint.

    ``target`` ends in .pt, or in .safetensors for a bare generator. A folder that was not imported goes out as
    {"generator": …} with the prefix ``model.``. Raises ValueError naming what ``source`` lacks or ``target`` cannot be,
    FileExistsError when it is there.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists; choose another name or remove it")
    if target.suffix not in (".pt", ".safetensors"):
        raise ValueError(f"{target}: a released checkpoint ends in .pt or .safetensors")
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
                raise ValueError(f"{target}: a safetensors file holds one model, {source} has {', '.join(sections)}")
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
    """``state`` without ``prefix``; tensors that begin at the same memory get their own, as a diffusers file needs."""
    owned: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for key, value in state.items():
        owned[key[len(prefix) :]] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return owned


def _to_original(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The weights that ``from_pretrained`` reads in ``folder``, bit for bit, under Wan's names and in their order."""
    _require_transformer(folder)
    state = {key: value for file in diffusers_files(folder) for key, value in read_tensors(file).items()}
    with torch.device("meta"):
        config = dict(WanTransformer3DModel.load_config(folder))
        config.pop("frames_per_block", None)  # no weight depends on it
        theirs = _names(WanTransformer3DModel.from_config(config))
    unknown, missing = sorted(state.keys() - theirs.keys()), [ours for ours in theirs if ours not in state]
    if any(".base_layer." in key for key in unknown):
        require_all_weights(folder, missing=missing, unknown=unknown)
    if unknown:
        raise ValueError(f"{folder} has {unknown[0]}, for which a released checkpoint has no place")
    if missing:
        raise ValueError(f"{folder} lacks {missing[0]} and {len(missing) - 1} more: its files are not all there")
    ours = {key: name for name, key in theirs.items()}
    return {prefix + key: state[ours[key]] for key in _all_keys(_count_blocks(ours)) if key in ours}


def _require_transformer(folder: Path) -> None:
    """Raise ValueError, naming what ``folder`` is, unless it is a diffusers folder of one transformer."""
    if folder.is_file():
        raise ValueError(f"{folder} is a file; export takes the diffusers folder of a transformer")
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist; export takes the diffusers folder of a transformer")
    if (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} is a whole diffusers pipeline; give its transformer, {folder / 'transformer'}")
    if found := foreign_folder(folder):
        raise ValueError(f"{folder} is {found}; export takes the diffusers folder of a transformer")
    saved_class(folder, "diffusers transformer", (WanTransformer3DModel, CausalWanTransformer3DModel))


def _names(model: WanTransformer3DModel) -> dict[str, str]:
    """diffusers' name → Wan's name of every weight of ``model`` that Wan's code has."""
    names = {rename(key): key for key in _all_keys(len(model.blocks))}
    return {ours: names[ours] for ours in model.state_dict() if ours in names}


def _count_blocks(keys: Iterable[str]) -> int:
    """Blocks from 0 on without a gap: a stray number must not make a model of ten thousand layers."""
    numbers = {found[1] for key in keys if (found := re.match(r"blocks\.(\d+)\.", key))}
    return next(count for count in itertools.count() if str(count) not in numbers)


def _all_keys(blocks: int) -> Iterator[str]:
    """Every key a text-to-video Wan can have, in the order of Wan's code."""
    both = ("weight", "bias")
    for module in (name for name in _MODULES if name != "head.head"):
        yield from (f"{module}.{part}" for part in both)
    for block in range(blocks):
        yield from (f"blocks.{block}.{table}" for table in _BLOCK_TABLES)
        yield from (f"blocks.{block}.{module}.{part}" for module in _BLOCK_MODULES for part in both)
    yield from _TABLES
    yield from (f"head.head.{part}" for part in both)


def _shaped(state: Mapping[str, torch.Tensor], key: str, axes: int) -> tuple[int, ...]:
    if key not in state:
        raise ValueError(f"missing {key}, without which the model's size is unknown")
    shape = tuple(state[key].shape)
    if len(shape) != axes or 0 in shape:
        raise ValueError(f"{key} has shape {shape}, expected {axes} axes of at least 1")
    return shape


app = typer.Typer(add_completion=False, help="Released checkpoints (model.pt) in and out.")
Source = Annotated[Path, typer.Argument(metavar="SRC")]


@app.command("import")
def import_command(
    source: Source,
    target: Annotated[Path, typer.Argument(metavar="DST", help="diffusers folder to make")],
    num_attention_heads: Annotated[int, typer.Option(help="12 for Wan2.1 1.3B, 40 for 14B; no shape tells")],
    frames_per_block: Annotated[
        int | None,
        typer.Option(help="latent frames a causal student makes at once (3 as released); none = bidirectional"),
    ] = None,
) -> None:
    """Make a diffusers folder of a released checkpoint (.pt or .safetensors)."""
    try:
        import_checkpoint(source, target, num_attention_heads=num_attention_heads, frames_per_block=frames_per_block)
    except (ValueError, OSError) as error:
        sys.exit(str(error))


@app.command("export")
def export_command(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="diffusers folder")],
    target: Annotated[Path, typer.Argument(metavar="DST.pt")],
) -> None:
    """Make a released checkpoint of a diffusers folder."""
    try:
        export_checkpoint(source, target)
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    app()
