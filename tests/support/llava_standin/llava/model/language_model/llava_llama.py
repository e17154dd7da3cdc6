from transformers import AutoConfig, LlamaConfig

from llava.model.standin import StandIn


class LlavaConfig(LlamaConfig):
    model_type = "llava_llama"


class LlavaLlamaForCausalLM(StandIn):
    config_class = LlavaConfig


AutoConfig.register("llava_llama", LlavaConfig)
