"""The numbers of the plan agree with diffusers' models, PyTorch's FLOP counter and published sizes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import UMT5Config, UMT5EncoderModel
from typer.testing import CliRunner

from causvid import costs, params, plan
from causvid.consistency import checked, problems
from causvid.methods.dmd.adapter import with_adapter
from causvid.plan import Plan
from causvid.profile import Profile
from causvid.runtime.shapes import LatentShape, VideoShape
from causvid.wan.costs import Transformer, text_encoder_parameters, vae_cost

PROFILES = sorted(params.PROFILES.glob("*.yaml"))
TERA = 1e12


@pytest.fixture(scope="module")
def wan() -> Plan:
    """Return the plan for the configuration of the original CausVid code."""
    return planned(released())


def released() -> dict[str, Any]:
    """Return the params for the configuration of the original CausVid code."""
    return params.read(params.PROFILES / "wan-1.3b.yaml")


def planned(values: dict[str, Any]) -> Plan:
    """Return the plan for the params ``values``."""
    return Plan(checked(values))


def student_updates(plan: Plan) -> int:
    """Return the number of student updates in DMD that ``plan`` states."""
    config = plan.profile.train_dmd
    return config.turns.student_updates(config.steps)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_every_profile_is_consistent(profile: Path) -> None:
    """The sections of a profile do not contradict each other."""
    assert list(problems(Profile.of(params.read(profile)))) == []


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_parameter_counts_equal_those_of_diffusers_and_transformers(profile: Path) -> None:
    """The closed-form parameter counts equal the counts of the real classes."""
    model = params.read(profile)["model"]
    with torch.device("meta"):
        transformer = WanTransformer3DModel(**model["transformer"])
        encoder = UMT5EncoderModel(UMT5Config(**{"vocab_size": 100, **model["text_encoder"]}))
    assert Transformer.of(model["transformer"]).parameters == sum(p.numel() for p in transformer.parameters())
    config = {"vocab_size": 100, **model["text_encoder"]}
    assert text_encoder_parameters(config)[0] == sum(p.numel() for p in encoder.parameters())


def test_flops_equal_those_of_pytorchs_counter() -> None:
    """The formula gives the FLOPs that PyTorch counts for a small transformer. A multiply-add has two FLOPs."""
    config = params.read(params.PROFILES / "laptop.yaml")["model"]["transformer"]
    small = WanTransformer3DModel(**{**config, "num_layers": 2})
    ours = Transformer.of({**config, "num_layers": 2})
    size, text = (1, config["in_channels"], 3, 4, 4), torch.randn(1, 12, config["text_dim"])
    tokens = 3 * 4 * 4
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        small(torch.randn(size), timestep=torch.tensor([500]), encoder_hidden_states=text, return_dict=False)
    # The plan omits the embedding of the timestep, which is computed once per clip.
    time = 2 * (ours.freq_dim * ours.width + ours.width**2 + 6 * ours.width**2)
    counted = sum(flops for name, flops in _leaves(counter) if "attention" not in name) - time
    expected = ours.forward(tokens, tokens**2, 12)
    assert counted == pytest.approx(expected.linear, rel=1e-9)


def test_flops_of_a_critic_that_trains_an_adapter() -> None:
    """The formula gives the FLOPs that PyTorch counts for a forward and a backward pass with frozen weights."""
    config = {**params.read(params.PROFILES / "laptop.yaml")["model"]["transformer"], "num_layers": 8}
    ours, rank, tokens = Transformer.of(config), 8, 3 * 4 * 4
    critic = with_adapter(WanTransformer3DModel(**config), rank, 0)
    assert sum(p.numel() for p in critic.parameters() if p.requires_grad) == ours.adapter_parameters(rank)
    size, text = (1, config["in_channels"], 3, 4, 4), torch.randn(1, 12, config["text_dim"])
    with FlopCounterMode(display=False) as counter:
        out = critic(torch.randn(size), timestep=torch.tensor([500]), encoder_hidden_states=text, return_dict=False)
        out[0].sum().backward()
    counted = sum(flops for name, flops in _leaves(counter) if "attention" not in name)
    expected = 2 * ours.forward(tokens, tokens**2, 12).linear + 3 * ours.adapter(tokens, 12, rank)
    # The formula also counts the gradients with respect to the input of the first layer and the prompt, which are not
    # computed.
    assert counted == pytest.approx(expected, rel=0.03)


def test_savings_of_a_critic_with_an_adapter(wan: Plan) -> None:
    """A LoRA critic has no full copy of weights with gradients and moments, and needs fewer FLOPs and less traffic."""
    values = released()
    values["train_dmd"] |= {"critic_lora_rank": 64}
    lora, rows = planned(values), [{row.stage: row for row in each.rows()} for each in (wan, planned(values))]
    adapter = wan.transformer.adapter_parameters(64)
    assert adapter / 1e6 == pytest.approx(87.5, rel=0.01)
    before, after = (row["train_dmd"] for row in rows)
    assert before.memory - after.memory == pytest.approx(16 * (wan.transformer.parameters - adapter))
    assert wan.dmd.critic / lora.dmd.critic == pytest.approx(1.06, abs=0.005)
    updates, steps = student_updates(wan), values["train_dmd"]["steps"]
    weights = wan.transformer.parameters
    assert before.network is not None
    assert after.network is not None
    assert after.network / before.network == pytest.approx(
        (updates * weights + steps * adapter) / ((updates + steps) * weights)
    )


@pytest.mark.parametrize(("shares", "student"), [(False, 4), (True, 1)])
def test_sharded_weights_are_sent_in_every_micro_batch(shares: bool, student: int, wan: Plan) -> None:
    """With shared samples, the student update is one micro-batch.

    Replicated weights are reduced after the last micro-batch only.
    """
    rows: dict[tuple[bool, int], dict[str, float]] = {}
    values = released()
    values["train_dmd"] |= {"share_samples": shares}
    for sharded in (False, True):
        for steps in (1, 4):
            values["compute"] |= {"workers": 8, "shard_weights": sharded, "gradient_accumulation_steps": steps}
            rows[sharded, steps] = {row.stage: row.network or 0.0 for row in planned(values).rows()}
    assert rows[False, 4] == rows[False, 1]
    assert rows[True, 4]["train_ode_init"] == pytest.approx(4 * rows[True, 1]["train_ode_init"])
    sent, critic = wan.transformer.parameters * 7 / 8, 8 * values["train_dmd"]["steps"]
    assert rows[True, 1]["train_dmd"] > critic * sent
    grown = rows[True, 4]["train_dmd"] - 4 * critic * sent, rows[True, 1]["train_dmd"] - critic * sent
    assert grown[0] == pytest.approx(student * grown[1])


def test_micro_batches_need_less_memory(wan: Plan) -> None:
    values = released()
    values["compute"] |= {"workers": 8, "gradient_accumulation_steps": 4}
    many = {row.stage: row.memory for row in planned(values).rows()}
    values["compute"] |= {"gradient_accumulation_steps": 1}
    one = {row.stage: row.memory for row in planned(values).rows()}
    assert one["train_ode_init"] - many["train_ode_init"] == pytest.approx((16 - 4) * wan.kept("full"))
    assert one["train_dmd"] - many["train_dmd"] == pytest.approx((8 - 2) * wan.kept("full"))
    values["train_dmd"] |= {"share_samples": True}  # with shared samples, the student update is one micro-batch
    shared = {row.stage: row.memory for row in planned(values).rows()}
    values["compute"] |= {"gradient_accumulation_steps": 4}
    both = {row.stage: row.memory for row in planned(values).rows()}
    assert shared["train_dmd"] - both["train_dmd"] == pytest.approx((8 - 2) * wan.kept("full"))


def test_counts_of_the_published_wan_model(wan: Plan) -> None:
    """The numbers for Wan2.1 1.3B at 480x832x81 were derived independently, in part from published weight files."""
    transformer = wan.transformer
    assert transformer.parameters == pytest.approx(1.419e9, rel=1e-3)
    # the transformer is published in two float32 files
    assert 4 * transformer.parameters == pytest.approx(4998781576 + 677289072, rel=1e-4)
    assert transformer.linear_per_token() / 1e9 == pytest.approx(2.5009, abs=1e-4)
    assert transformer.kv_cache_bytes(1, 2) == 184_320
    assert wan.kv_cache() / 1e9 == pytest.approx(6.04, abs=0.005)
    assert (wan.clip.frame_tokens, wan.clip.block_tokens, wan.clip.tokens) == (1560, 4680, 32760)
    assert wan.latent_bytes == 4_193_280
    every, _ = text_encoder_parameters(wan.profile.model.text_encoder)
    assert every == pytest.approx(5.68e9, rel=1e-3)


def test_flops_of_one_block(wan: Plan) -> None:
    """Compare the FLOPs of forward passes with a KV cache for each of the seven blocks."""
    expected = (16.18, 20.22, 24.26, 28.30, 32.33, 36.37, 40.41)
    assert [wan.clip.block_pass(block).forward / TERA for block in range(7)] == pytest.approx(expected, abs=0.03)


def test_flops_of_training_samples(wan: Plan) -> None:
    """Check the FLOPs of forward pass, backward pass, ODE regression, student update and critic update for one sample.

    Activations are not computed again.
    """
    assert wan.clip.causal.forward / TERA == pytest.approx(198.2, abs=0.1)
    assert wan.clip.bidirectional.forward / TERA == pytest.approx(283.0, abs=0.1)
    assert wan.clip.causal.backward / TERA == pytest.approx(454.5, abs=0.2)
    assert wan.clip.bidirectional.backward / TERA == pytest.approx(666.4, abs=0.3)
    assert wan.clip.causal.training / TERA == pytest.approx(653, abs=1)
    assert wan.dmd.student / TERA == pytest.approx(1502, abs=1)
    assert wan.dmd.critic / TERA == pytest.approx(1148, abs=1)
    assert wan.kept("full") / 1e9 == pytest.approx(3.0, abs=0.1)
    assert wan.kept("selective") / 1e9 == pytest.approx(9.1, abs=0.1)
    assert wan.kept("none") / 1e9 == pytest.approx(85, rel=0.05)


def test_flops_and_memory_of_rollouts(wan: Plan) -> None:
    """Three denoising steps give one step before the exit step on average in a causal rollout, and two otherwise.

    A causal student also writes six of its seven blocks into the KV cache. Unless the rollout is truncated, these passes
    have a gradient. Each pass over a block projects the prompt.
    """

    def changed(**changes: object) -> Plan:
        values = released()
        for path, value in changes.items():
            _change(path.replace("__", "."), value)(values)
        return planned(values)

    whole = changed(model__frames_per_block=None)
    rollouts = [
        changed(train_dmd__inputs="truncated_rollout"),
        changed(train_dmd__inputs="rollout", model__frames_per_block=None),
    ]
    text = 2 * 512 * (4096 * 1536 + 1536**2 + 30 * 2 * 1536**2) / TERA  # the prompt in the text embedder and 30 layers
    # Additional work: one pass before the exit step, six context passes, and six more projections of the prompt in the
    # exit step (one per block instead of one per clip).
    block_by_block = (198.07 + 7 * text) + (157.66 + 6 * text) + 6 * text
    for rollout, clips, more, backward in zip(
        rollouts, (wan, whole), (block_by_block, 2 * 283.0), (2 * 6 * text, 0.0), strict=True
    ):
        assert (rollout.dmd.student - clips.dmd.student) / TERA == pytest.approx(more + backward, abs=0.3)
        assert (rollout.dmd.critic - clips.dmd.critic) / TERA == pytest.approx(more, abs=0.3)
    shared = changed(train_dmd__inputs="truncated_rollout", train_dmd__share_samples=True)
    sample = 198.07 * 2 + 157.66 + 20 * text
    assert shared.dmd.critic / TERA == pytest.approx(sample / 5 + 949.4, abs=0.3)
    memory = [next(row.memory for row in each.rows() if row.stage == "train_dmd") for each in (shared, rollouts[0])]
    # The activations of the student are kept during the critic updates.
    assert memory[0] - memory[1] == pytest.approx(shared.kept("full"))
    assert (rollouts[0].dmd.student - shared.dmd.student) / TERA == pytest.approx(sample, abs=0.3)
    caches = [each.dmd.rollout_cache(each.workers) for each in (wan, whole, *rollouts)]
    assert caches == [0, 0, wan.kv_cache(), 0]  # each worker has one clip
    through = changed(train_dmd__inputs="rollout")
    context = sum(wan.clip.block_pass(block, text_cached=False).backward for block in range(6))
    assert through.dmd.student - rollouts[0].dmd.student == pytest.approx(context)
    assert through.dmd.critic == rollouts[0].dmd.critic
    activations = through.dmd.rollout_cache(through.workers) - caches[2]
    assert activations == pytest.approx((through.kept("full") + wan.kv_cache()) * 6 / 7)


@pytest.mark.parametrize(("inputs", "sums"), [("data", 0), ("rollout", 1), ("truncated_rollout", 1)])
def test_sharded_rollouts_store_the_sums_of_all_gradients(inputs: str, sums: int) -> None:
    """A gradient is complete after the last backward pass of a layer, and only then divided among the workers."""
    values = released()
    values["train_dmd"] |= {"inputs": inputs}
    values["compute"] |= {"shard_weights": True}
    plan = planned(values)
    row = next(row for row in plan.rows() if row.stage == "train_dmd")
    trained = plan.workers.memory(64, 2) + 4 * plan.transformer.parameters / plan.workers.count
    gradients = row.memory - trained - plan.dmd.rollout_cache(plan.workers)
    assert gradients == pytest.approx(sums * 2 * plan.transformer.parameters, abs=1)


@pytest.mark.parametrize(("rank", "gathered"), [(None, 0), (64, 1)])
def test_a_sharded_adapter_is_gathered_with_the_critic(rank: int | None, gathered: int, wan: Plan) -> None:
    """A critic update needs two passes with gradients, and a student update two passes without."""
    values = released()
    values["train_dmd"] |= {"critic_lora_rank": rank}
    values["compute"] |= {"shard_weights": True}
    plan = planned(values)
    row = next(row for row in plan.rows() if row.stage == "train_dmd")
    weights, updates, steps = plan.transformer.parameters, student_updates(plan), values["train_dmd"]["steps"]
    adapter = gathered * wan.transformer.adapter_parameters(64)
    learned = adapter if gathered else weights
    passes = 2 * (weights + adapter) * (steps + updates) + weights * (2 * updates + steps)
    sent = (plan.workers.count - 1) / plan.workers.count
    assert row.network == pytest.approx(sent * (2 * passes + 4 * (updates * weights + steps * learned)))


def test_flops_of_the_vae(wan: Plan) -> None:
    """The plan counts FLOPs of the first frame and of later latent frames separately.

    The sum of the two counts agrees with PyTorch's count for a clip.
    """
    vae = wan.vae
    counted = (vae.encode_first, vae.encode_next, vae.decode_first, vae.decode_next)
    assert [count / TERA for count in counted] == pytest.approx((2.718, 8.05, 4.352, 13.550), abs=0.005)
    assert vae.parameters == 126_892_531
    assert vae.decode(21) / TERA == pytest.approx(275.35, abs=0.1)
    with torch.device("meta"):
        small: Any = AutoencoderKLWan(base_dim=8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        small.decode(torch.empty(1, 16, 4, 4, 4, device="meta"))
    video = VideoShape(height=32, width=32, frames=13, fps=8)
    latent = LatentShape(channels=16, frames=4, height=4, width=4)
    cost = vae_cost({"base_dim": 8, "scale_factor_temporal": 4}, video, latent)
    assert cost.decode(4) == counter.get_total_flops()


def test_pairs_and_clips_on_disk(wan: Plan) -> None:
    """The original CausVid LMDBs have 27 GB of latents and 25 GB of ODE pairs; a pair has 16,773,120 bytes."""
    disk = {row.stage: row.disk for row in wan.rows()}
    assert disk["pack_lmdb@latents"] == 6484 * 4_193_280
    assert disk["generate_ode_pairs"] == 1500 * 16_773_120
    assert [row.stage for row in wan.rows()].index("train_dmd") > 0
    assert student_updates(wan) == 200


@pytest.mark.parametrize(("shares", "turns"), [(True, 3), (False, 4)])
def test_number_of_student_updates_with_critic_only_steps(shares: bool, turns: int, wan: Plan) -> None:
    """The first 2 of 19 critic updates have no student update.

    Then every fifth critic update has one student update.
    """
    values = released()
    values["train_dmd"] |= {"steps": 19, "critic_only_steps": 2, "share_samples": shares}
    assert student_updates(planned(values)) == turns
    values["train_dmd"]["steps"] = 1
    assert student_updates(planned(values)) == 0


def test_the_causal_teacher_generates_block_by_block_with_guidance(wan: Plan) -> None:
    """Each of 7 blocks takes 50 steps, and 6 blocks enter the cache. Guidance doubles all passes and the cache."""
    rows = {row.stage: row for row in wan.rows()}
    passes = [wan.clip.block_pass(block).forward for block in range(7)]
    text = wan.transformer.forward(0, 0, wan.text_tokens).forward
    expected = 2 * (text + 51 * sum(passes) - passes[-1]) + wan.vae.decode(21)
    assert wan.causal_teacher_clip(5.0) == pytest.approx(expected)
    extra = rows["sample@causal_teacher"].memory - rows["sample@dmd"].memory
    assert extra == wan.kv_cache() * wan.profile.sample.batch_size


def test_a_profile_without_blocks_has_no_caches_and_no_rollouts() -> None:
    values = released()
    values["model"]["frames_per_block"] = None
    plan = planned(values)
    rows = {row.stage: row for row in plan.rows()}
    weights = plan.bytes * (plan.transformer.parameters + plan.vae.parameters)
    assert plan.kv_cache() == 0
    for name in ("teacher", "causal_teacher", "ode_init", "dmd"):
        row = rows[f"sample@{name}"]
        assert (row.memory, row.work) == (weights, f"{plan.profile.sample.videos} videos")


def test_a_causal_teacher_of_dmd_has_cheaper_scores(wan: Plan) -> None:
    """A student update evaluates teacher (twice, for guidance) and critic. A critic update trains the critic."""
    flops = [
        {row.stage: row.flops for row in wan.training(causal_teacher=causal)}["train_dmd"] for causal in (False, True)
    ]
    config, clip, updates = wan.profile.train_dmd, wan.clip, student_updates(wan)
    assert config.guidance_scale != 1
    saved = updates * 3 * (clip.bidirectional.forward - clip.causal.forward)
    saved += config.steps * (clip.bidirectional.training - clip.causal.training)
    assert flops[0] - flops[1] == pytest.approx(config.batch_size * saved)


@pytest.mark.parametrize("rank", [None, 64])
def test_a_causal_teacher_can_have_other_blocks_than_the_student(rank: int | None, wan: Plan) -> None:
    """The teacher's attention costs less with blocks of one latent frame, and all other costs are equal.

    A latent frame attends to itself and to earlier frames. These are 1 + 2 + ... + 21 = 21 * 22 / 2 pairs of frames.
    """
    values = released()
    values["train_dmd"] |= {"critic_lora_rank": rank}
    plan = planned(values)
    causal = replace(plan.dmd, scored=plan.clip.in_blocks_of(1))
    saved = 4 * 1536 * 30 * (32760**2 - 1560**2 * 21 * 22 / 2)
    assert plan.dmd.student - causal.student == pytest.approx(3 * saved)  # with guidance, the teacher needs two passes
    assert plan.dmd.critic - causal.critic == pytest.approx(3.5 * saved)


def test_a_causal_teacher_is_trained_for_less_than_a_bidirectional_teacher() -> None:
    """With the same steps and batches, only the causal mask reduces the FLOPs."""
    values = released()
    for stage in ("train_teacher", "train_causal_teacher"):
        values[stage] |= {"steps": 10, "batch_size": 64}
    plan = planned(values)
    flops = {row.stage: row.flops for row in plan.training()}
    assert flops["train_teacher"] == pytest.approx(640 * plan.clip.bidirectional.training)
    assert flops["train_causal_teacher"] == pytest.approx(640 * plan.clip.causal.training)


def test_sharded_weights_need_less_memory_but_dmd_sends_more(wan: Plan) -> None:
    """With 64 workers, an update gathers weights in bfloat16 and reduces gradients in float32."""
    values = released()
    values["compute"] |= {"shard_weights": True}
    rows = {
        name: {row.stage: row for row in planned(v).rows()} for name, v in (("whole", released()), ("parts", values))
    }
    ode = {name: row["train_ode_init"] for name, row in rows.items()}
    weights, workers = wan.transformer.parameters, wan.workers.count
    saved = 20 * weights * (1 - 1 / workers) - 2 * 2 * weights / wan.transformer.num_layers
    assert ode["whole"].memory - ode["parts"].memory == pytest.approx(saved)
    # 8 bytes are sent per weight: 2 x 4 bytes if replicated, 2 x 2 and 4 bytes if sharded
    assert ode["whole"].network == ode["parts"].network
    section = values["train_dmd"]
    steps, updates = section["steps"], student_updates(planned(values))
    sent = weights * (workers - 1) / workers
    assert (section["inputs"], section["share_samples"]) == ("data", False)
    assert rows["parts"]["train_dmd"].network == pytest.approx(
        sent * (8 * (steps + updates) + 2 * (steps + 2 * updates))
    )


def _change(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def apply(values: dict[str, Any]) -> None:
        *sections, key = path.split(".")
        for section in sections:
            values = values[section]
        assert key in values
        values[key] = value

    return apply


def _change_both(*changes: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def apply(values: dict[str, Any]) -> None:
        for change in changes:
            change(values)

    return apply


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_change("video.frames", 32), ["video.frames", "32", "4n+1", "33"]),
        (_change("model.frames_per_block", 2), ["model.frames_per_block", "9 latent frames", "1, 3, 9"]),
        (
            _change("schedule.denoising_timesteps", [1000, 740, 500, 250]),
            ["schedule.denoising_timesteps", "740", "750"],
        ),
        (_change("schedule.denoising_timesteps", [1000, 500, 0]), ["schedule.denoising_timesteps", "context_timestep"]),
        (_change("video.height", 36), ["video.height", "36", "multiple of 8"]),
        (_change("model.transformer.patch_size", [1, 3, 1]), ["video.height", "patch_size"]),
        (_change("model.transformer.in_channels", 8), ["model.transformer.in_channels", "16"]),
        (_change("model.transformer.text_dim", 32), ["text_dim", "64"]),
        (_change("model.vae.scale_factor_spatial", 4), ["scale_factor_spatial", "8"]),
        (_change("model.text_tokens", 0), ["model.text_tokens is 0", "1 token at least"]),
        (_change("model.text_tokens", -1), ["model.text_tokens is -1", "1 token at least"]),
        (_change("model.text_tokens", 12.5), ["model.text_tokens", "integer", "12.5"]),
        (_change("model.text_tokens", None), ["model.text_tokens", "integer", "None"]),
        (
            _change_both(_change("train_causal_teacher.steps", 5), _change("model.frames_per_block", None)),
            ["train_causal_teacher.steps is 5", "model.frames_per_block is null"],
        ),
        (
            _change_both(_change("train_dmd.inputs", "truncated_rollout"), _change("model.frames_per_block", None)),
            ["train_dmd.inputs is truncated_rollout", "set train_dmd.inputs to rollout"],
        ),
        (_change("sample.rollouts", 1000), ["sample.rollouts", "sample.videos"]),
        (_change("report.rows", 1000), ["report.rows", "sample.videos"]),
        (_change("compute.workers", 3), ["train_dmd.batch_size", "compute.workers 3"]),
        (
            _change("compute.gradient_accumulation_steps", 3),
            ["train_ode_init.batch_size is 8", "gradient_accumulation_steps 3"],
        ),
        (_change("train_dmd.critic_lora_rank", 0), ["train_dmd.critic_lora_rank is 0", "null"]),
        (_change("train_dmd.score_timesteps", [980, 20]), ["score_timesteps"]),
    ],
)
def test_contradicting_params_are_named(change: Callable[[dict[str, Any]], None], words: list[str]) -> None:
    """The error names the field and states the remedy."""
    values = params.read(params.PROFILES / "laptop.yaml")
    change(values)
    with pytest.raises(ValueError, match=r"(?s)" + "".join(f"(?=.*{re.escape(word)})" for word in words)):
        checked(values)


def _run(*arguments: str) -> tuple[int, str]:
    import typer

    app = typer.Typer()
    app.command()(plan.main)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output + (str(result.exception) if result.exception else "")


def test_the_plan_of_wan_1_3b_prints_reasons_and_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small machine, the plan of wan-1.3b states why the machine cannot run the profile, and exits with 0."""
    monkeypatch.setattr(plan.device, "pick", lambda: torch.device("cpu"))
    monkeypatch.setattr(plan.psutil, "virtual_memory", lambda: SimpleNamespace(total=16e9))
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda _: SimpleNamespace(free=20e9))
    code, text = _run(str(params.PROFILES / "wan-1.3b.yaml"))
    assert code == 0
    for words in ("cannot run it", "no GPU is here", "16 GB", "20 GB are free", "64 x H100", "train_dmd"):
        assert words in text


def test_the_laptop_profile_fits_a_small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The laptop profile needs no GPU and little memory."""
    monkeypatch.setattr(plan.psutil, "virtual_memory", lambda: SimpleNamespace(total=4e9))
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda _: SimpleNamespace(free=5e9))
    code, text = _run(str(params.PROFILES / "laptop.yaml"))
    assert (code, "This machine can run it." in text) == (0, True)


def test_time_scales_with_machines_and_achieved_fraction(wan: Plan) -> None:
    """With four times as many machines at half the fraction of peak FLOPs, the run takes half the time."""
    slow, fast = (plan.render(wan, machines=n, kind="H100", achieved=a) for n, a in ((16, 0.4), (64, 0.2)))
    slow_hours, fast_hours = (float(text.split("\nall ")[1].split()[2]) for text in (slow, fast))
    assert slow_hours / fast_hours == pytest.approx(2, rel=0.02)


def test_an_unknown_gpu_and_a_missing_file_give_a_message(tmp_path: Path) -> None:
    """An invalid option or file gives a message and exit code 1."""
    code, text = _run(str(params.PROFILES / "laptop.yaml"), "--kind", "abacus")
    assert code == 1
    assert "abacus" in text
    assert "H100" in text
    code, text = _run(str(tmp_path / "none.yaml"))
    assert code == 1
    assert "none.yaml" in text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "?"), (0, "-"), (999.4, "999 B"), (999.9, "1 kB"), (1e3, "1 kB"), (4.2e25, "4.2e+07 EB")]
)
def test_numbers_have_a_prefix(value: float | None, text: str) -> None:
    """Values round up to the next unit prefix, including both ends of the scale."""
    assert costs.scaled(value, "B") == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "-"), (0.5, "< 1 s"), (60, "60 s"), (600, "10 min"), (7200, "2 h")])
def test_times_have_a_readable_unit(seconds: float, text: str) -> None:
    """Durations are written in seconds, minutes or hours."""
    assert costs.duration(seconds) == text


def _leaves(counter: FlopCounterMode) -> list[tuple[str, int]]:
    return [(str(operation), flops) for operation, flops in counter.get_flop_counts()["Global"].items()]


def test_number_of_videos_of_each_source(tmp_path: Path) -> None:
    for name in ("a.mp4", "sub/b.webm", "a.txt", "captions.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    values = params.read(params.PROFILES / "laptop.yaml")
    rows = {}
    for source, limit in (("toy_world", None), ("toy_world", 10), ("folder", None), ("folder", 1), ("mixkit", None)):
        values["download"] |= {"source": source, "limit": limit, "folder": str(tmp_path)}
        planned_now = planned(values)
        rows[source, limit] = planned_now.clips, planned_now.rows()[0].network
    assert rows == {
        ("toy_world", None): (768, 0.0), ("toy_world", 10): (10, 0.0), ("folder", None): (2, 0.0),
        ("folder", 1): (1, 0.0), ("mixkit", None): (plan.MIXKIT_VIDEOS, None),
    }  # fmt: skip
