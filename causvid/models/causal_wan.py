"""Provide the causal transformer under the module name that exported pipelines contain.

diffusers loads a class from the module that model_index.json names, so the name of this module must not change. The
module must already be imported, and must contain the base class ``ModelMixin``, by which diffusers recognises a model.
"""

from diffusers import ModelMixin as ModelMixin

from causvid.wan.transformer.causal_wan import CausalWanTransformer3DModel as CausalWanTransformer3DModel
