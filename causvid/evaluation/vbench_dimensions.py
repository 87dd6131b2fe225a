"""The dimensions of VBench, and the weight files of each.

The names of files and settings are the names in VBench 0.1.5. Some download links of this version no longer work.
"""

from __future__ import annotations

_CLIP_B = "clip_model/ViT-B-32.pt"  # OpenAI's TorchScript archive, not a state dict
_CLIP_L = "clip_model/ViT-L-14.pt"
_VICLIP = "ViCLIP/ViClip-InternVid-10M-FLT.pth"
_DINO = "dino_model/dino_vitbase16_pretrain.pth"
_DINO_CODE = "dino_model/facebookresearch_dino_main"
# Maps each dimension to the files that it reads from evaluate.vbench_weights (VBench's cache folder).
WEIGHTS: dict[str, tuple[str, ...]] = {
    "temporal_flickering": (),
    "subject_consistency": (_DINO, *(f"{_DINO_CODE}/{name}.py" for name in ("hubconf", "vision_transformer", "utils"))),
    "background_consistency": (_CLIP_B,),
    "motion_smoothness": ("amt_model/amt-s.pth",),
    "dynamic_degree": ("raft_model/models/raft-things.pth",),
    "aesthetic_quality": (_CLIP_L, "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth"),
    "imaging_quality": ("pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",),
    "overall_consistency": (_VICLIP,),
    "temporal_style": (_VICLIP,),
}
# These dimensions need labels or boxes that exist for VBench's own prompts only.
NEEDS_OWN_PROMPTS = (
    "appearance_style",
    "color",
    "human_action",
    "multiple_objects",
    "object_class",
    "scene",
    "spatial_relationship",
)
# VBench also loads the weights of DINO through torch.hub, even if their path is given.
ALSO_AT = {_DINO: "torch_hub/hub/checkpoints/dino_vitbase16_pretrain.pth"}
