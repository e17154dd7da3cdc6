from transformers import AutoTokenizer

from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.language_model.llava_qwen import LlavaQwenForCausalLM
from llava.model.standin import ImageProcessor


def load_pretrained_model(
    model_path,
    model_base,
    model_name,
    device_map="auto",
    torch_dtype="float16",
    attn_implementation="flash_attention_2",
    overwrite_config=None,
    multimodal=False,
):
    """Like LLaVA-NeXT's, which takes the class by the name that it is given."""
    kind = LlavaQwenForCausalLM if "qwen" in model_name.lower() else LlavaLlamaForCausalLM
    config = kind.config_class.from_pretrained(model_path)
    for name, value in (overwrite_config or {}).items():
        setattr(config, name, value)
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    return tokenizer, kind(config, tokenizer), ImageProcessor(), config.max_position_embeddings
