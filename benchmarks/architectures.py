"""Tries every text-generation architecture of transformers on a tiny random model.

    OMP_NUM_THREADS=1 python -m benchmarks.architectures try benchmarks/architectures.json
    python -m benchmarks.architectures table benchmarks/architectures.json > docs/architectures.md

`try` shrinks the default config of each architecture that AutoModelForCausalLM or
AutoModelForSeq2SeqLM knows, saves a model of it with random weights, and lets each method learn two
tiny tasks from that folder in two steps each. Each try has a process of its own, forked from one
that has imported everything. What a file has already is kept: delete a row, or name architectures,
to try them again.

An architecture *works* if both methods learn and score both tasks, answers of prompts alone are
those of a batch, and so are the logits of learned answers. It is *refused* if retain says so in its
one line. Anything else is a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import multiprocessing
import signal
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from retain.errors import RetainError
from retain.learner.learner import Learner
from retain.testing.tiny import make_task, make_tokenizer

METHODS: dict[str, dict[str, Any]] = {
    "seqlora": {"rank": 2},
    "sapt": {
        "rank": 2,
        "router": {"kind": "attention", "hidden": 8},
        "generator": {"max_new_tokens": 4},
    },
}
LIMIT = 240
"""Seconds after which a try counts as hung."""
LARGEST = 20_000_000
"""Parameters of a model that is still tiny. A larger one means that its config was not shrunk."""
WIDTH = 32
TOLERANCE = 1e-3
"""Largest difference between a row's logits alone and in a batch, by the spread of the logits."""

WIDTHS = [
    "hidden_size",
    "d_model",
    "n_embd",
    "emb_dim",
    "embedding_dim",
    "embedding_size",
    "dim",
    "word_embed_proj_dim",
    "attention_hidden_size",
    "hidden_size_global",
    "backbone_hidden_size",
    "lru_width",
    "mamba_d_ssm",
    "audio_hidden_size",
    "cross_attention_hidden_size",
    "input_embedding_size",
    "output_embedding_size",
    "encoder_hidden_size",
    "hidden_dim",
    "input_size",
    "adapter_input_size",
]
INNER = [
    "intermediate_size",
    "moe_intermediate_size",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "ffn_dim",
    "d_ff",
    "dff",
    "d_inner",
    "dim_ff",
    "ffn_hidden_size",
    "shared_expert_intermediate_size",
    "shared_experts_intermediate_size",
    "shared_intermediate_size",
    "intermediate_size_mlp",
    "expert_ffn_hidden_size",
    "dense_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "feed_forward_size",
    "mlp_dim",
    "prompt_mid_dim",
    "speech_encoder_intermediate_size",
    "t2u_encoder_ffn_dim",
    "t2u_decoder_ffn_dim",
    "out_hidden_size",
    "downsample_hidden_size",
    "vector_quantization_hidden_dimension",
]
LAYERS = [
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "n_layers",
    "encoder_layers",
    "decoder_layers",
    "depth",
    "num_decoder_layers",
    "num_encoder_layers",
    "speech_encoder_layers",
    "t2u_encoder_layers",
    "t2u_decoder_layers",
    "num_blocks",
    "conf_num_hidden_layers",
    "num_layers_per_stack",
]
HEADS = [
    "num_attention_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "encoder_attention_heads",
    "index_n_heads",
    "decoder_attention_heads",
    "num_encoder_attention_heads",
    "num_decoder_attention_heads",
    "attention_heads",
    "mamba_n_heads",
    "mamba_num_heads",
    "linear_num_value_heads",
    "linear_num_heads",
    "swa_num_attention_heads",
    "speech_encoder_attention_heads",
    "t2u_encoder_attention_heads",
    "t2u_decoder_attention_heads",
]
FEWER = [
    "num_key_value_heads",
    "num_kv_heads",
    "linear_num_key_heads",
    "num_query_groups",
    "swa_num_key_value_heads",
]
EXPERTS = [
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "num_centroids",
    "zero_expert_num",
]
SIZES: dict[str, int] = {
    **dict.fromkeys(WIDTHS, WIDTH),
    **dict.fromkeys(INNER, 48),
    **dict.fromkeys(LAYERS, 2),
    **dict.fromkeys(HEADS, 4),
    **dict.fromkeys(FEWER, 2),
    **dict.fromkeys(EXPERTS, 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "centroid_intermediate_top_k"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "d_head", "dim_head", "kv_channels"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "qk_head_dim"), 8),
    **dict.fromkeys(("swa_head_dim", "linear_head_dim", "linear_key_head_dim"), 8),
    **dict.fromkeys(("linear_value_head_dim", "index_head_dim", "attention_head_dim"), 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank", "hc_lowrank"), 8),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "mamba_dt_rank"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "time_step_rank", "laurel_rank"), 8),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size", "rotary_dim", "embed_dim"), 8),
    **dict.fromkeys(("hidden_size_per_layer_input", "query_pre_attn_scalar"), 8),
    **dict.fromkeys(("router_hidden_size", "adapter_rank", "d_rel", "ple_embed_dim"), 8),
    **dict.fromkeys(("conv_channels", "sscp_conv_channels", "base_channels"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 256),
    **dict.fromkeys(("context_length", "max_target_positions", "model_max_length"), 256),
    **dict.fromkeys(("max_encoder_position_embeddings", "max_source_positions"), 256),
    **dict.fromkeys(("max_decoder_position_embeddings", "t2u_max_position_embeddings"), 256),
    **dict.fromkeys(("image_size", "crop_size"), 32),
    **dict.fromkeys(("patch_size",), 16),
    **dict.fromkeys(("attention_window", "sliding_window", "sliding_window_size"), 16),
    **dict.fromkeys(("window_size", "attention_window_size", "local_attention"), 16),
    **dict.fromkeys(("t2u_vocab_size", "unit_hifi_gan_vocab_size", "char_vocab_size"), 64),
    **dict.fromkeys(("codebook_size", "audio_vocab_size", "encoder_hash_byte_group_vocab"), 64),
    **dict.fromkeys(("pronunciation_vocab_size", "shape_vocab_size", "ngram_vocab_size_base"), 64),
    **dict.fromkeys(("pronunciation_embed_dim", "shape_embed_dim", "codebook_dim"), 16),
    "num_kv_shared_layers": 0,
    "n_group": 2,
    "topk_group": 1,
}
"""Small values of fields, by their name in any config."""
VOCABULARIES = [
    "vocab_size",
    "src_vocab_size",
    "tgt_vocab_size",
    "decoder_vocab_size",
    "unpadded_vocab_size",
    "vocab_size_per_layer_input",
]
SPREAD = {"initializer_range": 0.2, "init_std": 0.2, "std": 0.2}
"""Larger than usual: at 0.02 a random model gives every prompt the same answer."""
IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
MAMBA = {"attention_hidden_size": 2 * WIDTH, "attention_head_dim": 16, "mamba_d_head": 16}
MIXED = ["linear_attention", "hybrid"]
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_d_head": 16, "attn_layer_indices": [1]},
    "beam": {"n_group": 2, "topk_group": 1},
    "cwm": {"bos_token_id": 2},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {"text_config": {"num_key_value_heads": 4}},
    "dots3_note_text": {"num_key_value_heads": 4},
    "emu3": {"text_config": {"bos_token_id": 2}},
    "encoder-decoder": {"decoder": {"is_decoder": True, "add_cross_attention": True}},
    "ernie4_5_moe": {"moe_k": 2},
    "gemma3n_text": {"activation_sparsity_pattern": [0.0, 0.0]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": None},
    "granitemoehybrid": {**MAMBA, "layer_types": ["linear_attention", "full_attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"num_experts_per_token": 2},
    "marian": {"decoder_start_token_id": 0, "pad_token_id": 0},
    "longcat_flash": {"num_key_value_heads": 4, "qk_head_dim": 16},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "ministral": {"head_dim": 8},
    "mllama": {"text_config": {"bos_token_id": 2}},
    "modernbert-decoder": {"bos_token_id": 2},
    "nemo_speechlm": {"blank_token_id": 5},
    "nemotron": {"num_key_value_heads": 4},
    "nemotron_h": {"n_groups": 2},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"],
        "axial_pos_embds_dim": [8, 24],
        "axial_pos_shape": [16, 16],
    },
    "t5gemma": {"decoder": {"bos_token_id": 2}, "decoder_start_token_id": 2},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        **MAMBA,
        "num_hidden_layers": 6,
        "layers_block_type": MIXED * 3,
    },
    "zamba2": MAMBA,
}
"""What a config needs beyond this, by architecture."""


def shrink(config: Any, words: int) -> dict[str, Any]:
    """Returns the fields of a config, and of those within it, that make its model tiny."""
    values = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    small: dict[str, Any] = {}
    kinds = [
        list(dict.fromkeys(value)) for value in values.values() if _is_of_layers(value, values)
    ]
    layers = max([2, *map(len, kinds)])
    for name, value in values.items():
        if isinstance(value, transformers.PreTrainedConfig):
            small[name] = {"model_type": value.model_type, **shrink(value, words)}
        elif _is_of_layers(value, values):
            distinct = list(dict.fromkeys(value))
            small[name] = distinct + distinct[-1:] * (layers - len(distinct))
        elif name in VOCABULARIES:
            small[name] = words
        elif name in SPREAD:
            small[name] = SPREAD[name]
        elif name in IDS:
            small[name] = IDS[name]
        elif isinstance(value, bool) or not isinstance(value, int):
            continue
        elif name in LAYERS:
            small[name] = layers
        elif name in SIZES:
            small[name] = min(value, SIZES[name])
    if "kv_lora_rank" in small:  # each head then has keys of its own
        small["num_key_value_heads"] = SIZES["num_attention_heads"]
    return small


def _is_of_layers(value: Any, values: Mapping[str, Any]) -> bool:
    """Tells whether a value is a list with a word for each layer."""
    count = values.get("num_hidden_layers")
    return (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(part, str) for part in value)
    )


def build(kind: str, auto: Any, folder: Path) -> int:
    """Saves a tiny model of an architecture with its tokenizer; returns its parameters."""
    tokenizer = make_tokenizer()
    words = len(tokenizer)
    fields = shrink(AutoConfig.for_model(kind), words)
    if hasattr(AutoConfig.for_model(kind), "is_decoder") and auto is AutoModelForCausalLM:
        fields["is_decoder"] = True  # BERT and its kin
    for name, value in EXCEPTIONS.get(kind, {}).items():
        if value is None:
            fields.pop(name, None)
        elif isinstance(value, Mapping):
            fields[name] = {**fields.get(name, {}), **value}
        else:
            fields[name] = value
    config = AutoConfig.for_model(kind, **fields)
    start = getattr(config, "decoder_start_token_id", None)
    if config.is_encoder_decoder and (start is None or start >= words):
        config.decoder_start_token_id = 0
    with torch.device("meta"):
        size: int = sum(p.numel() for p in auto.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"its shrunken config still has {size:,} parameters")
    torch.manual_seed(0)
    model = auto.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return size


def learn(folder: Path, method: str, run: Path) -> None:
    """Learns two tasks with a method, and compares rows alone with rows of a batch.

    Raises:
        AssertionError: if they differ.
    """
    learner = Learner(
        folder,
        {"name": method, **METHODS[method]},
        run,
        training={"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.02},
        evaluation={"max_new_tokens": 4, "batch_size": 4},
    )
    tasks = [make_task("copy"), make_task("letter")]
    for task in tasks:
        learner.learn(task)
    examples = [example for task in tasks for example in task.test]
    prompts = [example.prompt for example in examples]
    together = learner.generate(prompts)
    alone = [learner.generate([prompt])[0] for prompt in prompts]
    assert together == alone, f"answers alone {alone}, in a batch {together}"
    backbone = learner.backbone
    rows = [backbone.encode(example) for example in examples]
    batch = backbone.collate(rows)
    with torch.no_grad():
        learner.method.route(batch)
        logits, _ = backbone.answer_logits(batch)
        for number, row in enumerate(rows):
            single = backbone.collate([row])
            learner.method.route(single)
            expected, targets = backbone.answer_logits(single)
            count = targets.shape[1]
            own = logits[number, :count] if backbone.is_encoder_decoder else logits[number, -count:]
            difference = float((own - expected[0]).abs().max() / expected.std())
            assert difference < TOLERANCE, f"logits in a batch differ by {difference:.1g}"


def one(kind: str, auto: Any, answer: Any) -> None:
    """Tries one architecture and sends what came of it."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    row: dict[str, Any] = {"class": auto.__name__}
    with TemporaryDirectory() as place:
        folder = Path(place) / "model"
        try:
            row["parameters"] = build(kind, auto, folder)
        except Exception as error:
            row["not built"] = f"{type(error).__name__}: {_line(error)}"
            answer.send(row)
            return
        for method in METHODS:
            try:
                learn(folder, method, Path(place) / method)
                row[method] = {"status": "works"}
            except RetainError as error:
                text = str(error).replace(place, "")
                row[method] = {"status": "refused", "line": text}
            except BaseException as error:
                text = f"{type(error).__name__}: {_line(error)}".replace(place, "")
                frames = traceback.extract_tb(error.__traceback__)
                where = [f"{Path(f.filename).name}:{f.lineno}" for f in frames[-4:]]
                row[method] = {"status": "fault", "line": text, "where": where}
    answer.send(row)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]


def attempt(kind: str, auto: Any) -> dict[str, Any]:
    """Tries one architecture in a process of its own, within the limit of time."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=one, args=(kind, auto, there))
    began = time.monotonic()
    process.start()
    there.close()
    row: dict[str, Any] = {"class": auto.__name__, "not built": f"no end within {LIMIT} s"}
    with contextlib.suppress(EOFError):
        if here.poll(LIMIT):
            row = here.recv()
    if process.is_alive():
        process.join(5)
        process.kill()
    process.join()
    if process.exitcode == -signal.SIGSEGV:
        row["not built"] = "the process crashed"
    print(f"{time.monotonic() - began:.1f} s", end=" ")
    return row


def kinds() -> dict[str, Any]:
    """The architectures, each with the class that loads it; one of both kinds has two names."""
    causal = {str(kind): AutoModelForCausalLM for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    for kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        causal[str(kind)] = AutoModelForSeq2SeqLM  # the config decides, and it says encoder-decoder
    return dict(sorted(causal.items()))


def try_all(path: Path, wanted: Sequence[str]) -> None:
    """Tries what the file lacks, or the wanted architectures, and rewrites it after each."""
    rows: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    gc.freeze()  # Trainer collects garbage, which takes a second with all that is imported
    for kind, auto in kinds().items():
        if (wanted and kind not in wanted) or (not wanted and kind in rows):
            continue
        rows[kind] = attempt(kind, auto)
        shown = [rows[kind].get("not built", ""), *(rows[kind].get(m, {}) for m in METHODS)]
        print(kind, *shown, flush=True)
        path.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")


def outcome(row: Mapping[str, Any]) -> tuple[str, str]:
    """Returns what came of an architecture in a word, and why."""
    if "not built" in row:
        return "not built", row["not built"]
    results = [row[method] for method in METHODS]
    for status in ("fault", "refused"):
        for result in results:
            if result["status"] == status:
                line = result["line"].replace("backbone '/model'", "backbone")
                return status, line
    return "works", ""


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the page of results."""
    outcomes = {kind: outcome(row) for kind, row in rows.items()}
    names = {
        status: [kind for kind, (found, _) in outcomes.items() if found == status]
        for status in ("works", "refused", "fault", "not built")
    }
    counts = ", ".join(f"{len(kinds)} {status}" for status, kinds in names.items() if kinds)
    lines = [
        "# Architectures",
        "",
        "Every architecture that AutoModelForCausalLM or AutoModelForSeq2SeqLM of transformers "
        f"{transformers.__version__} knows, as a tiny random model on a CPU, over the methods "
        f"{' and '.join(METHODS)} with their default target modules. *Works* means: both learn "
        "and score two tasks, answers of prompts alone are those of a batch, and so are the "
        "logits. *Refused* means that retain says why not in one line. "
        "*Not built* means that no tiny model came of the config: it says nothing of retain. "
        "What works on a tiny model has the right shapes and masks; it is not a score.",
        "",
        "```bash",
        "OMP_NUM_THREADS=1 python -m benchmarks.architectures try benchmarks/architectures.json",
        "python -m benchmarks.architectures table benchmarks/architectures.json "
        "> docs/architectures.md",
        "```",
        "",
        f"Of {len(rows)} architectures: {counts}.",
        "",
        "## Works",
        "",
        ", ".join(names["works"]) + ".",
    ]
    for status, kinds in names.items():
        if status != "works" and kinds:
            lines += ["", f"## {status.capitalize()}", "", "| architecture | why |", "|---|---|"]
            for kind in kinds:
                why = outcomes[kind][1].replace("|", "\\|")
                lines.append(f"| {kind} | {why[:300]} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=["try", "table"])
    parser.add_argument("file", type=Path)
    parser.add_argument("architectures", nargs="*")
    options = parser.parse_args()
    if options.action == "table":
        print(table(json.loads(options.file.read_text())), end="")
        return
    torch.set_num_threads(1)
    try_all(options.file, options.architectures)


if __name__ == "__main__":
    main()
