from transformers import AutoConfig, Qwen2Config

from llava.model.standin import StandIn


class LlavaQwenConfig(Qwen2Config):
    model_type = "llava_qwen"


class LlavaQwenForCausalLM(StandIn):
    config_class = LlavaQwenConfig


AutoConfig.register("llava_qwen", LlavaQwenConfig)
