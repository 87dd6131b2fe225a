"""The module name of the causal student's class in exported pipelines, so that their model_index.json stays valid.

diffusers takes a class from the module that model_index.json names. The module must be imported before, and contain the
base class ``ModelMixin``, by which diffusers recognises a model.
"""

from diffusers import ModelMixin as ModelMixin

from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel as CausalWanTransformer3DModel
