from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from causvid.data.sources import toy_world
from causvid.evaluation.features import BATCH_PIXELS, DIMENSIONS, FeatureNet, pool
from causvid.runtime.shapes import VideoShape
from causvid.wan.vae import vae as vae_module
from causvid.wan.vae.vae import load_vae, posterior, to_unit

VIDEO = VideoShape(height=32, width=32, frames=13, fps=8)


def clips(count: int) -> list[np.ndarray]:
    captions = toy_world.captions()
    return [toy_world.clip_frames(captions[k], k, video=VIDEO, seed=0) for k in range(count)]


def test_features_do_not_depend_on_the_batch(world: Path) -> None:
    net = FeatureNet(world / "vae")
    videos = clips(BATCH_PIXELS // clips(1)[0][..., 0].size + 2)  # the videos do not fit into one batch
    together = net(iter(videos))
    assert together.shape == (len(videos), 8)  # the features are two statistics of four channels
    assert together.dtype == np.float64
    alone = np.concatenate([net([frames]) for frames in videos])
    assert together == pytest.approx(alone, rel=1e-4, abs=1e-6)
    assert together.std(axis=0).min() > 0
    assert net([]).shape == (0, 0)


def test_features_are_the_activations_in_the_complete_encoder(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder runs over chunks with caches.

    An encoder that stops early keeps the caches that its first stage needs.
    """
    monkeypatch.setattr(vae_module, "CHUNK_PIXELS", 4 * 32 * 32)
    vae, passed, videos = load_vae(world / "vae"), list[torch.Tensor](), np.stack(clips(2))
    vae.encoder.down_blocks[0].register_forward_hook(lambda _module, _inputs, out: passed.append(out))
    posterior(vae, to_unit(torch.from_numpy(videos)))
    assert len(passed) == 4
    expected = pool(torch.cat(passed, dim=2)).double().numpy()
    assert np.array_equal(FeatureNet(world / "vae")(videos), expected)


@pytest.mark.parametrize("size", [(1, 32, 32), (5, 48, 64)])
def test_videos_of_any_size_have_features(world: Path, size: tuple[int, int, int]) -> None:
    found = FeatureNet(world / "vae")([np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)])
    assert found.shape == (1, 8)
    assert np.isfinite(found).all()


def test_a_folder_without_a_vae_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluate.feature_vae is .*nothing, which holds no VAE"):
        FeatureNet(tmp_path / "nothing")


def test_damaged_weights_stop_the_run(tmp_path: Path, world: Path) -> None:
    load_vae(world / "vae").save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["encoder.conv_in.weight"][0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="features are not finite"):
        FeatureNet(tmp_path)(clips(1))


def test_pooling_in_closed_form() -> None:
    hidden = torch.zeros(1, 2, 3, 4, 4)
    # half of each frame has the value 6: the standard deviation is 3, and nothing changes in time
    hidden[:, 0, :, :, 2:] = 6.0
    hidden[:, 1, 1] = 5.0  # constant frames, which change by 5 and back
    assert pool(hidden).tolist() == [[3.0, 0.0, 0.0, 5.0]]
    assert pool(hidden[:, :, :1]).tolist() == [[3.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize(("channels", "dimensions"), [(24, 48), (32, 64), (33, 34), (96, 64)])
def test_many_channels_are_subsampled(channels: int, dimensions: int) -> None:
    assert pool(torch.zeros(2, channels, 2, 2, 2)).shape == (2, dimensions)
    assert dimensions <= DIMENSIONS
