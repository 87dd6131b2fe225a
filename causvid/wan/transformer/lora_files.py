"""Load LoRA files into a Wan transformer, and reject a file if any key of the file does not fit.

The method ``load_lora_adapter`` of diffusers drops keys without the prefix, only warns about keys that do not fit, and
by default ignores the scaling (``lora_alpha``) in a safetensors file. The user may then not notice that only a part of
the LoRA, or nothing, was loaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import WanTransformer3DModel
from diffusers.loaders.lora_base import _fetch_state_dict
from diffusers.utils import convert_unet_state_dict_to_peft
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

Source = str | os.PathLike[str] | Mapping[str, torch.Tensor]

FACTORS = ("lora_A.weight", "lora_B.weight")
_KEY = re.compile(r"(?P<module>.+)\.(?P<part>lora_[AB]\.weight|lora_B\.bias|lora_magnitude_vector)")
_STYLES = {
    "diffusion_model.": "Wan's own names, as ComfyUI writes them",
    "lora_unet_": "the names of kohya-ss and musubi-tuner",
    "base_model.model.": "the names of a saved peft model",
}


def load_lora_adapter(
    self: WanTransformer3DModel,
    pretrained_model_name_or_path_or_dict: Source,
    prefix: str | None = "transformer",
    hotswap: bool = False,
    **kwargs: Any,
) -> None:
    """Load a LoRA adapter whose keys have the names of diffusers. A file that does not fit completely is rejected.

    The arguments are those of the method of diffusers with the same name. Unlike the method of diffusers, this function
    rejects a file if any key does not fit, and applies the scaling that ``save_lora_adapter`` writes into the file.

    Args:
        self: The transformer.
        pretrained_model_name_or_path_or_dict: File, folder, hub repository, or mapping of names to tensors.
        prefix: First part of every key, without the dot. Keys in files of ``save_lora_adapter`` have no prefix (None).
        hotswap: Whether the weights replace the weights of the loaded adapter ``adapter_name``.
        **kwargs: The other arguments of diffusers' method.

    Raises:
        ValueError: If the file cannot be read, if a key names no layer of the model, if a tensor has the wrong shape,
            or if a factor of a layer is missing. The model is unchanged after this error.
    """
    given = pretrained_model_name_or_path_or_dict
    source = "the LoRA" if isinstance(given, Mapping) else str(given)
    state, metadata = _read(given, source, kwargs)
    if misfit := next(_misfits(self, state, prefix), None):
        expected = ".".join(part for part in (prefix, "blocks.0.attn1.to_q", FACTORS[0]) if part)
        raise ValueError(f"{source} does not fit {type(self).__name__}: {misfit}; expected keys like {expected}")
    if prefix is not None and not any(key.startswith(f"{prefix}.") for key in metadata or ()):
        metadata = None  # there are no metadata, or they describe another model in the file
    WanTransformer3DModel.load_lora_adapter(
        self, state, prefix=prefix, hotswap=hotswap, **{"metadata": metadata, **kwargs}
    )


def check_lora_files(model: WanTransformer3DModel) -> None:
    """Set ``model.load_lora_adapter`` to the function of this module if the model has the method of diffusers."""
    if type(model).load_lora_adapter is not load_lora_adapter:
        model.load_lora_adapter = MethodType(load_lora_adapter, model)


def without_fused_adapters(model: WanTransformer3DModel) -> WanTransformer3DModel:
    """Return a model that shares the fused weights of ``model`` and has no LoRA layers.

    Raises:
        ValueError: If ``model`` has an adapter that is not fused. A saved copy of ``model`` could not be loaded.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if not layers:
        return model
    for layer in layers:
        if layer.disable_adapters or not layer.merged or set(layer.active_adapters) - set(layer.merged_adapters):
            adapters = ", ".join(model.peft_config)
            raise ValueError(
                f"the transformer has the LoRA adapters {adapters}, and not all are fused into its weights; call "
                "transformer.fuse_lora() to save it with the adapters, or transformer.unload_lora() to save it "
                "without them (transformer.save_lora_adapter saves a single adapter)"
            )
    weights = model.state_dict().items()
    with init_empty_weights():
        plain: WanTransformer3DModel = type(model).from_config(model.config)
    state = {key.replace(".base_layer.", "."): value for key, value in weights if ".lora_" not in key}
    plain.load_state_dict(state, strict=True, assign=True)
    return plain


def _read(given: Source, source: str, kwargs: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """Read a LoRA. The arguments that this function uses are removed from ``kwargs``.

    Returns:
        A mapping of names to tensors, and the metadata: the fields of a LoraConfig, or None without metadata.
    """
    names = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")
    where = {name: kwargs.pop(name, None) for name in names}
    weight_name, use_safetensors = kwargs.pop("weight_name", None), kwargs.pop("use_safetensors", None)
    if isinstance(given, Mapping):
        return dict(given), None
    path = Path(given)
    if not path.exists() and (isinstance(given, os.PathLike) or path.suffix or path.is_absolute()):
        raise ValueError(f"{source} does not exist; give a LoRA file, its folder, or a repository on the hub")
    if use_safetensors is None:
        pickled = path.is_dir() and not any(path.glob("*.safetensors"))
        use_safetensors = not pickled and (not path.is_file() or path.suffix == ".safetensors")
    try:
        state, metadata = _fetch_state_dict(
            source, weight_name, use_safetensors, user_agent={"framework": "pytorch"}, allow_pickle=False, **where
        )
    # The parsers, and the client of the hub, raise many kinds of errors for a damaged or missing file.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{source} cannot be read as a LoRA file ({reason[:300]})") from error
    return dict(state), metadata


def _misfits(model: nn.Module, state: Mapping[str, torch.Tensor], prefix: str | None) -> Iterator[str]:
    """Yield the reasons why ``state`` does not fit ``model``. The first reason is the most helpful."""
    if not state:
        yield "the file holds no tensors"
    own = f"{prefix}." if prefix is not None else ""
    bare = _as_peft({key.removeprefix(own): value for key, value in state.items()})
    places = {name: module for name, module in model.named_modules() if _weight(module) is not None}
    fits = {key: bool((match := _KEY.fullmatch(key)) and match["module"] in places) for key in bare}
    if outside := [key for key in state if not key.startswith(own)]:
        remedy = "; give prefix=None" if len(outside) == len(state) and all(fits.values()) else ""
        yield f"{_count(outside, state)} do not start with {own!r}{remedy}"
    if unknown := [key for key, fit in fits.items() if not fit]:
        yield f"{_count(unknown, bare)} do not name a part of a LoRA and a layer of the model"
    for module in dict.fromkeys(key[: key.index(".lora_")] for key in bare if ".lora_" in key):
        yield from _bad_factors(module, bare, places[module])


def _bad_factors(name: str, state: Mapping[str, torch.Tensor], module: nn.Module) -> Iterator[str]:
    """Yield the errors in the factors of layer ``name``. A weight [out, in, ...] needs A [r, in] and B [out, r]."""
    weight, factors = _weight(module), [state.get(f"{name}.{part}") for part in FACTORS]
    for part, factor in zip(FACTORS, factors, strict=True):
        if factor is None:
            yield f"{name}.{part} is missing"
    first, second = factors
    if first is None or second is None or weight is None:
        return
    shapes, rank = (tuple(first.shape), tuple(second.shape)), first.shape[0] if first.ndim else 0
    if min(first.ndim, second.ndim) < 2 or (second.shape[0], second.shape[1], first.shape[1]) != (
        weight.shape[0], rank, weight.shape[1],
    ):  # fmt: skip
        yield f"{name} has factors A {shapes[0]} and B {shapes[1]}; its weight has shape {tuple(weight.shape)}"


def _as_peft(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert the keys of ``state`` to the names of peft, as the method ``load_lora_adapter`` of diffusers does."""
    if not state or "lora_A" in next(iter(state)):
        return state
    converted: dict[str, torch.Tensor] = convert_unet_state_dict_to_peft(state)
    return converted


def _weight(module: nn.Module) -> torch.Tensor | None:
    """Return the weight of ``module`` that a LoRA changes; None if ``module`` cannot have a LoRA."""
    layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return layer.weight if isinstance(layer, (nn.Linear, nn.Conv3d)) else None


def _count(wrong: list[str], of: Mapping[str, Any]) -> str:
    """Describe the keys ``wrong``: their number, an example, and the naming style of the example."""
    style = next((f", {names}" for start, names in _STYLES.items() if wrong[0].startswith(start)), "")
    return f"{len(wrong)} of its {len(of)} keys (as {wrong[0]}{style})"
