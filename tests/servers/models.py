"""The models of the tests: tiny, with random weights, made by the libraries that load them.

    build/servers/bin/python tests/servers/models.py DIRECTORY

Each folder below DIRECTORY is one layout that people have; `cases.py` says what is expected of it.
It runs in the servers' own environment, so it imports nothing of this repository.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gguf
import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Router,
    StaticEmbedding,
    Transformer,
)
from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

WORDS = ("<unk>", "<s>", "</s>", "[PAD]", "hello", "world", "the", "page")
WIDTH = 32
SHARD = "60KB"  # three shards or more of each model that is sharded
README = "---\nlicense: apache-2.0\n---\nMade by the tests.\n"


def main(directory: str) -> None:
    """Make every model below `directory`."""
    torch.manual_seed(0)
    for name, make in MAKERS.items():
        folder = os.path.join(directory, name)
        os.makedirs(folder)
        make(folder)
        if not os.path.exists(os.path.join(folder, "README.md")):
            _write(os.path.join(folder, "README.md"), README)
        _write(os.path.join(folder, ".gitattributes"), "*.safetensors filter=lfs\n")


# transformers


def single(folder: str) -> None:
    """One `model.safetensors`."""
    _llama().save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def sharded(folder: str) -> None:
    """An index and its shards."""
    _llama().save_pretrained(folder, max_shard_size=SHARD)
    _tokenizer().save_pretrained(folder)


def pickled(folder: str) -> None:
    """One `pytorch_model.bin`."""
    single(folder)
    path = os.path.join(folder, "model.safetensors")
    torch.save(load_file(path), os.path.join(folder, "pytorch_model.bin"))
    os.unlink(path)


def pickled_shards(folder: str) -> None:
    """An index and its shards, pickled."""
    sharded(folder)
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        pickle = path.replace("/model-", "/pytorch_model-").replace(".safetensors", ".bin")
        if name.endswith(".safetensors"):
            torch.save(load_file(path), pickle)
            os.unlink(path)
        elif name.endswith(".index.json"):
            text = _read(path).replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
            _write(os.path.join(folder, "pytorch_model.bin.index.json"), text)
            os.unlink(path)


def both_formats(folder: str) -> None:
    """The same weights as safetensors and pickled."""
    single(folder)
    weights = load_file(os.path.join(folder, "model.safetensors"))
    torch.save(weights, os.path.join(folder, "pytorch_model.bin"))


def consolidated(folder: str) -> None:
    """Mistral's own format beside one file."""
    single(folder)
    _copy(folder, "model.safetensors", "consolidated.safetensors")
    _write(os.path.join(folder, "params.json"), "{}")


def consolidated_shards(folder: str) -> None:
    """Mistral's own format, in two files with an index, beside shards."""
    sharded(folder)
    weights = load_file(os.path.join(folder, sorted(_shards(folder))[0]))
    names = [f"consolidated-0000{part}-of-00002.safetensors" for part in (1, 2)]
    for name in names:
        save_file(weights, os.path.join(folder, name))
    index = {"metadata": {}, "weight_map": dict(zip(weights, names, strict=False))}
    _write_json(os.path.join(folder, "consolidated.safetensors.index.json"), index)


def stale_index(folder: str) -> None:
    """An index whose shards were merged into one whole file."""
    sharded(folder)
    for name in _shards(folder):
        os.unlink(os.path.join(folder, name))
    _llama().save_pretrained(folder)
    assert "model.safetensors.index.json" in os.listdir(folder)


def both_sets(folder: str) -> None:
    """One whole file, and an index with all its shards."""
    sharded(folder)
    kept = {name: _bytes(os.path.join(folder, name)) for name in os.listdir(folder)}
    _llama().save_pretrained(folder)
    for name, content in kept.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)


def stray_shard(folder: str) -> None:
    """An index, its shards, and a file that the index does not name."""
    sharded(folder)
    _copy(folder, sorted(_shards(folder))[0], "mtp.safetensors")


def variant(folder: str) -> None:
    """Weights in two precisions, side by side."""
    single(folder)
    _llama().half().save_pretrained(folder, variant="fp16")


def named_by_config(folder: str) -> None:
    """Weights under a name of their own, which `transformers_weights` in the config gives."""
    single(folder)
    path = os.path.join(folder, "config.json")
    config = json.loads(_read(path))
    _write_json(path, {**config, "transformers_weights": "weights.safetensors"})
    os.rename(
        os.path.join(folder, "model.safetensors"), os.path.join(folder, "weights.safetensors")
    )


def named_by_config_beside(folder: str) -> None:
    """The same, beside weights under the usual name, which then are not read."""
    named_by_config(folder)
    _copy(folder, "weights.safetensors", "model.safetensors")


def original_folder(folder: str) -> None:
    """Meta's own format in a folder that nothing names."""
    single(folder)
    os.mkdir(os.path.join(folder, "original"))
    _copy(folder, "model.safetensors", "original/consolidated.00.pth")
    _write(os.path.join(folder, "original", "params.json"), "{}")


def remote_code(folder: str) -> None:
    """A model with code of its own, of which one module imports another."""
    single(folder)
    path = os.path.join(folder, "config.json")
    own = {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    _write_json(path, {**json.loads(_read(path)), "auto_map": own, "model_type": "own"})
    _write(
        os.path.join(folder, "configuration_own.py"),
        "from transformers import LlamaConfig\n\nclass Own(LlamaConfig):\n    model_type = 'own'\n",
    )
    _write(
        os.path.join(folder, "modeling_own.py"),
        "from transformers import LlamaForCausalLM\nfrom .configuration_own import Own\n\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = Own\n",
    )


def chat_templates(folder: str) -> None:
    """A tokenizer with several chat templates, which lie in a folder that nothing names."""
    _llama().save_pretrained(folder)
    tokenizer = _tokenizer()
    template = str(tokenizer.chat_template)
    tokenizer.chat_template = {"default": template, "tool_use": template}
    tokenizer.save_pretrained(folder)


def old_tokenizer(folder: str) -> None:
    """A tokenizer in the files that it had before `tokenizer.json`."""
    _llama().save_pretrained(folder)
    words = {word: at for at, word in enumerate(("<|endoftext|>", "h", "e", "l", "o", "he", "Ġ"))}
    _write_json(os.path.join(folder, "vocab.json"), words)
    _write(os.path.join(folder, "merges.txt"), "#version: 0.2\nh e\n")
    _write_json(os.path.join(folder, "added_tokens.json"), {"<extra>": len(words)})
    end = {"unk_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    _write_json(os.path.join(folder, "special_tokens_map.json"), end)
    _write_json(
        os.path.join(folder, "tokenizer_config.json"), {"tokenizer_class": "GPT2Tokenizer", **end}
    )


def hub_cache(folder: str) -> None:
    """The cache of a hub: a snapshot whose files are links to blobs."""
    repo = os.path.join(folder, "hub", "models--org--name")
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot, blobs = os.path.join(repo, "snapshots", commit), os.path.join(repo, "blobs")
    os.makedirs(snapshot)
    os.makedirs(blobs)
    os.makedirs(os.path.join(repo, "refs"))
    _write(os.path.join(repo, "refs", "main"), commit)
    sharded(snapshot)
    for number, name in enumerate(sorted(os.listdir(snapshot))):
        blob = f"{number:064x}"
        os.rename(os.path.join(snapshot, name), os.path.join(blobs, blob))
        os.symlink(f"../../blobs/{blob}", os.path.join(snapshot, name))


# sentence-transformers


def sentences(folder: str) -> None:
    """Modules in folders of their own beside a transformer at the top."""
    _sentence_model([_dense(), Normalize()]).save(folder)


def sentences_in_folder(folder: str) -> None:
    """The transformer in a folder of its own too, as older versions wrote it."""
    _sentence_model([]).save(folder)
    path = os.path.join(folder, "modules.json")
    modules = json.loads(_read(path))
    modules[0]["path"] = "0_Transformer"
    _write_json(path, modules)
    os.mkdir(os.path.join(folder, "0_Transformer"))
    stay = {"modules.json", "config_sentence_transformers.json", "README.md", "0_Transformer"}
    for name in os.listdir(folder):
        if name not in stay and os.path.isfile(os.path.join(folder, name)):
            os.rename(os.path.join(folder, name), os.path.join(folder, "0_Transformer", name))


def sentences_pickled(folder: str) -> None:
    """Modules whose weights are pickled."""
    sentences(folder)
    for path in ("model.safetensors", "2_Dense/model.safetensors"):
        whole = os.path.join(folder, path)
        torch.save(load_file(whole), whole.replace("model.safetensors", "pytorch_model.bin"))
        os.unlink(whole)


def sentences_exported(folder: str) -> None:
    """ONNX and OpenVINO exports beside the weights, as on the hub."""
    sentences(folder)
    for name in ("onnx/model.onnx", "openvino/openvino_model.bin"):
        os.mkdir(os.path.join(folder, os.path.dirname(name)))
        _write(os.path.join(folder, name), "not read\n" * 100)


def sentences_static(folder: str) -> None:
    """No transformer: a table of embeddings."""
    SentenceTransformer(
        modules=[StaticEmbedding(_word_tokenizer(), embedding_dim=WIDTH)], device="cpu"
    ).save(folder)


def router(folder: str) -> None:
    """A Router: its modules lie in folders that `router_config.json` names."""
    SentenceTransformer(
        modules=[
            Router.for_query_document(
                query_modules=[StaticEmbedding(_word_tokenizer(), embedding_dim=WIDTH)],
                document_modules=[*_transformer_and_pooling(), _dense()],
            ),
            Normalize(),
        ],
        device="cpu",
    ).save(folder)


def sparse(folder: str) -> None:
    """A sparse encoder."""
    below = os.path.join(sys.argv[1], "masked")
    BertForMaskedLM(_bert_config()).save_pretrained(below)
    _tokenizer().save_pretrained(below)
    SparseEncoder(modules=[MLMTransformer(below), SpladePooling()], device="cpu").save(folder)


def cross_encoder(folder: str) -> None:
    """A reranker: a plain transformers model."""
    BertForSequenceClassification(_bert_config(num_labels=1)).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    CrossEncoder(folder, device="cpu").save(folder)


# diffusers


def pipeline(folder: str) -> None:
    """A pipeline of components in folders, safetensors."""
    _pipeline().save_pretrained(folder)


def pipeline_single_beside(folder: str) -> None:
    """A pipeline with the same weights as one file beside the components."""
    pipeline(folder)
    _copy(folder, "unet/diffusion_pytorch_model.safetensors", "v1-5-pruned-emaonly.safetensors")


def pipeline_variant(folder: str) -> None:
    """A pipeline in two precisions, side by side."""
    _pipeline().save_pretrained(folder)
    _pipeline().to(dtype=torch.float16).save_pretrained(folder, variant="fp16")


def pipeline_variant_shards(folder: str) -> None:
    """A pipeline in two precisions whose larger component is sharded."""
    _pipeline().save_pretrained(folder, max_shard_size="400KB")
    half = _pipeline().to(dtype=torch.float16)
    half.save_pretrained(folder, variant="fp16", max_shard_size="200KB")


def pipeline_variant_old_names(folder: str) -> None:
    """The same, with the variant at the end of the shards' names, as diffusers wrote them once."""
    pipeline_variant_shards(folder)
    for part in ("unet", "vae"):
        below = os.path.join(folder, part)
        for name in os.listdir(below):
            if ".fp16-" in name:
                new = name.replace(".fp16-", "-").replace(".safetensors", ".fp16.safetensors")
                os.rename(os.path.join(below, name), os.path.join(below, new))
        index = os.path.join(below, "diffusion_pytorch_model.safetensors.index.fp16.json")
        text = _read(index).replace(".fp16-", "-").replace('.safetensors"', '.fp16.safetensors"')
        _write(index, text)


def pipeline_pickled(folder: str) -> None:
    """A pipeline whose weights are pickled."""
    _pipeline().save_pretrained(folder, safe_serialization=False)
    path = os.path.join(folder, "text_encoder", "model.safetensors")
    if os.path.exists(path):  # transformers 5 writes nothing else
        pickle = os.path.join(folder, "text_encoder", "pytorch_model.bin")
        torch.save(load_file(path), pickle)
        os.unlink(path)


def pipeline_both_formats(folder: str) -> None:
    """A pipeline whose weights are both safetensors and pickled."""
    _pipeline().save_pretrained(folder)
    for path in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"):
        whole = os.path.join(folder, path)
        torch.save(load_file(f"{whole}.safetensors"), f"{whole}.bin")


# llama.cpp


def gguf_single(folder: str) -> None:
    """One GGUF file of 33 MiB."""
    _write_llama(os.path.join(folder, "tiny-f32.gguf"), width=512)


def gguf_quantisations(folder: str) -> None:
    """Two quantisations side by side."""
    _write_llama(os.path.join(folder, "tiny-Q8_0.gguf"))
    _write_llama(os.path.join(folder, "tiny-f32.gguf"))


def gguf_companions(folder: str) -> None:
    """A model, and what goes with it: a projector, a draft model, an adapter."""
    _write_llama(os.path.join(folder, "tiny.gguf"))
    _write_projector(os.path.join(folder, "mmproj-tiny.gguf"))
    _write_llama(os.path.join(folder, "draft.gguf"))
    _write_adapter(os.path.join(folder, "adapter.gguf"))


def gguf_split(folder: str) -> None:
    """One model in several files."""
    _write_llama(os.path.join(folder, "tiny.gguf"), tensors_per_file=6)


# How each is made


def _llama(**changes: Any) -> LlamaForCausalLM:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=512, **sizes, **heads, **changes)
    return LlamaForCausalLM(config)


def _bert_config(**changes: Any) -> BertConfig:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 1}
    return BertConfig(vocab_size=len(WORDS), num_attention_heads=2, **sizes, **changes)


def _word_tokenizer() -> Tokenizer:
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def _tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=_word_tokenizer(),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="[PAD]",
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    )


def _transformer_and_pooling() -> list[Any]:
    folder = os.path.join(sys.argv[1], "bert")
    if not os.path.exists(folder):
        BertModel(_bert_config()).save_pretrained(folder)
        _tokenizer().save_pretrained(folder)
    return [Transformer(folder), Pooling(WIDTH)]


def _dense() -> Dense:
    return Dense(WIDTH, WIDTH)


def _sentence_model(more: Sequence[Any]) -> SentenceTransformer:
    return SentenceTransformer(modules=[*_transformer_and_pooling(), *more], device="cpu")


def _pipeline() -> StableDiffusionPipeline:
    channels = (32, 64)
    unet = UNet2DConditionModel(
        block_out_channels=channels,
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
    )
    vae = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
    )
    sizes = {"hidden_size": WIDTH, "intermediate_size": 37, "num_hidden_layers": 2}
    text_encoder = CLIPTextModel(CLIPTextConfig(num_attention_heads=4, vocab_size=99, **sizes))
    folder = os.path.join(sys.argv[1], "clip")
    os.makedirs(folder, exist_ok=True)
    words = ["<|startoftext|>", "<|endoftext|>", "h", "e</w>", "he</w>"]
    _write_json(os.path.join(folder, "vocab.json"), {word: at for at, word in enumerate(words)})
    _write(os.path.join(folder, "merges.txt"), "#version: 0.2\nh e</w>\n")
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(folder, model_max_length=77),
        unet=unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _write_llama(path: str, *, width: int = 64, tensors_per_file: int = 0) -> None:
    """Write a Llama of two layers with a tokenizer, in one file or in several."""
    layers, heads, hidden, vocabulary = 2, 4, width * 4, 320
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=tensors_per_file)
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(vocabulary)
    special = ["<unk>", "<s>", "</s>"]
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [f"▁{number}" for number in range(vocabulary - len(letters) - len(special))]
    kinds = gguf.TokenType
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*special, *letters, *words])
    writer.add_token_scores([0.0] * vocabulary)
    writer.add_token_types(
        [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL]
        + [kinds.BYTE] * len(letters)
        + [kinds.NORMAL] * len(words)
    )
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocabulary, width),
        "output_norm.weight": (width,),
        "output.weight": (vocabulary, width),
    }
    for layer in range(layers):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (width,),
            f"blk.{layer}.attn_q.weight": (width, width),
            f"blk.{layer}.attn_k.weight": (width, width),
            f"blk.{layer}.attn_v.weight": (width, width),
            f"blk.{layer}.attn_output.weight": (width, width),
            f"blk.{layer}.ffn_norm.weight": (width,),
            f"blk.{layer}.ffn_gate.weight": (hidden, width),
            f"blk.{layer}.ffn_up.weight": (hidden, width),
            f"blk.{layer}.ffn_down.weight": (width, hidden),
        }
    _write_tensors(writer, shapes)


def _write_projector(path: str, *, text_width: int = 64) -> None:
    """Write an image encoder of one layer, as Gemma 3 has it."""
    width, hidden, patch, side = 32, 64, 14, 56
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(value=True)
    writer.add_clip_projector_type("gemma3")
    writer.add_vision_image_size(side)
    writer.add_vision_patch_size(patch)
    writer.add_vision_embedding_length(width)
    writer.add_vision_feed_forward_length(hidden)
    writer.add_vision_block_count(1)
    writer.add_vision_head_count(2)
    writer.add_vision_projection_dim(text_width)
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_std([0.5] * 3)
    writer.add_vision_use_gelu(value=True)
    shapes: dict[str, tuple[int, ...]] = {
        "v.patch_embd.weight": (width, 3, patch, patch),
        "v.patch_embd.bias": (width,),
        "v.position_embd.weight": ((side // patch) ** 2, width),
        "mm.input_projection.weight": (width, text_width),
        "mm.soft_emb_norm.weight": (width,),
        "v.blk.0.ffn_up.weight": (hidden, width),
        "v.blk.0.ffn_up.bias": (hidden,),
        "v.blk.0.ffn_down.weight": (width, hidden),
        "v.blk.0.ffn_down.bias": (width,),
    }
    for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
        shapes[f"v.blk.0.{name}.weight"] = (width, width)
        shapes[f"v.blk.0.{name}.bias"] = (width,)
    for name in ("v.post_ln", "v.blk.0.ln1", "v.blk.0.ln2"):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)
    _write_tensors(writer, shapes)


def _write_adapter(path: str, *, width: int = 64, rank: int = 4) -> None:
    """Write a LoRA adapter for one tensor of `_write_llama`'s model."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 1.0)
    name = "blk.0.attn_q.weight"
    _write_tensors(writer, {f"{name}.lora_a": (rank, width), f"{name}.lora_b": (width, rank)})


def _write_tensors(writer: gguf.GGUFWriter, shapes: Mapping[str, Sequence[int]]) -> None:
    """Add random tensors and write all."""
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(name, (random.standard_normal(shape) * 0.02).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _shards(folder: str) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith("model-0")]


def _copy(folder: str, old: str, new: str) -> None:
    shutil.copyfile(os.path.join(folder, old), os.path.join(folder, new))


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _read(path: str) -> str:
    return _bytes(path).decode()


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _write_json(path: str, value: object) -> None:
    _write(path, json.dumps(value, indent=2))


MAKERS: dict[str, Callable[[str], None]] = {
    make.__name__: make
    for make in (
        single,
        sharded,
        pickled,
        pickled_shards,
        both_formats,
        consolidated,
        consolidated_shards,
        stale_index,
        both_sets,
        stray_shard,
        variant,
        named_by_config,
        named_by_config_beside,
        original_folder,
        remote_code,
        chat_templates,
        old_tokenizer,
        hub_cache,
        sentences,
        sentences_in_folder,
        sentences_pickled,
        sentences_exported,
        sentences_static,
        router,
        sparse,
        cross_encoder,
        pipeline,
        pipeline_single_beside,
        pipeline_variant,
        pipeline_variant_shards,
        pipeline_variant_old_names,
        pipeline_pickled,
        pipeline_both_formats,
        gguf_single,
        gguf_quantisations,
        gguf_companions,
        gguf_split,
    )
}

if __name__ == "__main__":
    main(sys.argv[1])
