"""The faults that the linter knows: what follows from each, what to do, and how grave it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from runbook.steps.checkpoint.targets import Quirk, Target, targets

Severity = Literal["error", "warning", "info", "none"]


@dataclass(frozen=True)
class Rule:
    """One kind of fault. `on` gives the severity for targets with a quirk, `severity` for the
    others; `none` means that it is no fault there."""

    consequence: str
    remedy: str
    severity: Severity = "error"
    on: Mapping[Quirk, Severity] = field(default_factory=dict)

    def severity_for(self, target: Target) -> Severity:
        return next((s for q, s in self.on.items() if q in target.quirks), self.severity)

    def by_target(self) -> dict[str, Severity]:
        return {str(target): self.severity_for(target) for target in targets()}


MEND: Final = "`uses: mtp` mends it"
DOWNLOAD: Final = "download the file again"

RULES: Final[Mapping[str, Rule]] = {
    # Files
    "weights_foreign": Rule(
        "neither the steps nor the profiles here are for weights of this format",
        "give a repository or folder with safetensors files",
    ),
    "weights_absent": Rule("there is nothing to load", DOWNLOAD),
    "file_odd": Rule(
        "a link that leads nowhere, a pipe or the like: nothing can be read there",
        "remove it, or restore what it leads to",
        "warning",
    ),
    "custom_code": Rule(
        "the checkpoint brings Python code, which `trust_remote_code` runs as this user",
        "leave trust_remote_code off if vLLM has the model's classes; else read these very files "
        "and compare their digests",
        "warning",
    ),
    "header_invalid": Rule("the file cannot be loaded", DOWNLOAD),
    "shard_missing": Rule(
        "vLLM stops: weight files referenced in index but missing",
        DOWNLOAD,
    ),
    "shard_length": Rule("tensors at the end are cut off or foreign", DOWNLOAD),
    "shard_layout": Rule(
        "offsets, shapes and dtypes of the header contradict each other; the safetensors library "
        "refuses the file",
        DOWNLOAD,
    ),
    "index_missing": Rule(
        "nothing says which tensors belong to the model",
        "add model.safetensors.index.json",
        "warning",
    ),
    "index_stale": Rule(
        "the index names tensors which their shard does not hold: vLLM leaves them uninitialised",
        "download index and shards of one revision",
    ),
    "index_lacks": Rule(
        "the tensors lie in a shard, but vLLM never opens it because the index does not name it",
        MEND,
    ),
    "index_size": Rule("tools show a wrong size", MEND, "info"),
    "tensor_duplicate": Rule(
        "vLLM reads every tensor of every listed shard: of two with one name, the last file wins",
        MEND,
    ),
    # Architecture
    "architecture_unknown": Rule(
        "its tensors cannot be checked against the architecture, only its files",
        "give a checkpoint of DeepSeek-V4 (with an MTP block or DSpark) or of DeepSeek-V3",
    ),
    "tensor_dtype": Rule(
        "a tensor that is not quantised is stored in a dtype that vLLM does not load there",
        "restore the tensor from upstream",
    ),
    "config_field": Rule(
        "vLLM cannot build the model",
        "restore the field from the upstream config.json",
    ),
    "tensor_missing": Rule(
        "vLLM leaves the parameter uninitialised; the output is wrong without an error",
        "restore the tensor from the upstream checkpoint",
    ),
    "tensor_kind_missing": Rule(
        "no layer has this tensor: another naming, or a model vLLM cannot fill",
        "compare the names with the upstream checkpoint",
        "warning",
    ),
    "tensor_unknown": Rule(
        "vLLM may stop with a KeyError for a name it does not know",
        "remove or rename the tensor",
        "warning",
    ),
    "tensor_shape": Rule(
        "vLLM stops while loading, or reads a wrong part", "restore the tensor from upstream"
    ),
    "name_drift": Rule(
        "vLLM stops with a KeyError: the name is that of the transformers classes", MEND
    ),
    "gate_bias_name": Rule(
        "older builds stop with a KeyError for ffn.gate.e_score_correction_bias",
        MEND,
        "info",
        {"gate_bias_strict": "error"},
    ),
    "fp32_downcast": Rule(
        "routing and hyper-connections lose precision",
        "restore the tensors in FP32 from the upstream checkpoint",
        "warning",
    ),
    # MTP block
    "mtp_stripped": Rule(
        "there is no draft head: speculation fails at the start of the server or never drafts",
        "serve a checkpoint with the mtp block, or make one with the book mtp-head",
    ),
    "mtp_incomplete": Rule(
        "vLLM does not notice a partly loaded draft: what is missing stays uninitialised, and most "
        "drafts are rejected",
        "restore the block from the upstream checkpoint, or make one with the book mtp-head",
    ),
    "mtp_overdeclared": Rule(
        "vLLM builds as many blocks as are declared: those without tensors stay uninitialised",
        MEND,
    ),
    "dspark_draft": Rule(
        "the speculative method `mtp` finds no MTP head in this checkpoint",
        "serve it with the speculative method `dspark`, or without speculation",
        "info",
    ),
    "dspark_unserved": Rule(
        "this build has no DSpark draft that runs",
        "serve without speculation, or with vLLM 0.33.0",
        "none",
        {"dspark_absent": "warning"},
    ),
    "dspark_stages": Rule(
        "vLLM builds another number of stages than there are: some stay uninitialised, silently",
        "restore the stages from the upstream checkpoint; correct n_mtp_layers if they are all",
    ),
    "dspark_layer_ids": Rule(
        "the draft asks for hidden states of layers that the model does not have",
        "restore dspark_target_layer_ids from the upstream config.json",
    ),
    "dspark_layers_other": Rule(
        "the known drafts take in the last layers; with others than it was trained on, drafts are "
        "rejected",
        "compare dspark_target_layer_ids with the upstream config.json",
        "warning",
    ),
    "dspark_noise_id": Rule(
        "the draft fills its block with a token that the vocabulary does not have",
        "restore dspark_noise_token_id from the upstream config.json",
    ),
    "dspark_field": Rule(
        "vLLM cannot build the draft", "restore the field from the upstream config.json"
    ),
    "dspark_confidence": Rule(
        "vLLM drafts without it; adaptive verification is not to be had", "none needed", "info"
    ),
    "mtp_undeclared": Rule(
        "with num_nextn_predict_layers 0 vLLM stops with a ZeroDivisionError", MEND
    ),
    "mtp_aliases": Rule(
        "vLLM shares embedding and head with the target model, unless pipeline parallel",
        "none needed; with pipeline parallelism let `uses: mtp` add the aliases",
        "info",
    ),
    # Quantised tensors
    "scale_missing": Rule(
        "the values have no scale: the output is noise",
        "restore the scale from the upstream checkpoint",
    ),
    "scale_orphan": Rule(
        "vLLM stops with a KeyError: no quantised weight belongs to the scale",
        "remove the scale",
        "warning",
    ),
    "scale_name": Rule(
        "vLLM stops with a KeyError: compressed-tensors names scales weight_scale",
        MEND,
    ),
    "scale_u8": Rule(
        "exponent bytes stored as U8 are read as the numbers 120 to 130: silently wrong",
        MEND,
    ),
    "scale_dtype": Rule(
        "the scale cannot be loaded as a number", "restore the scale from upstream"
    ),
    "scale_shape": Rule("scales and blocks do not fit together", "restore the scale from upstream"),
    "scale_range": Rule(
        "values are not finite, negative, or in the draft's FP8 zero or at least 1: wrong silently",
        "restore the scale from the upstream checkpoint",
    ),
    "scale_zero": Rule(
        "the values of these blocks all become zero",
        "compare with the upstream checkpoint: right only where the weights are zero",
        "warning",
    ),
    "scale_negative": Rule(
        "not every kernel reads negative scales: wrong results where one does not",
        "quantise again without `signed`, or compare the answers with those of another kernel",
        "warning",
    ),
    "packed_dtype": Rule("vLLM cannot load the packed weight", "pack the tensor again"),
    "packed_shape": Rule(
        "words, groups and the unpacked shape contradict each other", "pack the tensor again"
    ),
    "weight_shape": Rule(
        "weight_shape is absent or differs from the packed weight", "pack the tensor again"
    ),
    "weight_dtype": Rule(
        "a linear is stored in a dtype that vLLM does not load there",
        "restore the tensor from upstream",
    ),
    # quantization_config
    "quantization_absent": Rule(
        "tensors are quantised and config.json does not say so",
        "restore quantization_config",
    ),
    "quant_method": Rule(
        "vLLM reads the tensors by the rules of another format",
        "restore quantization_config from the checkpoint that the tensors are from",
    ),
    "target_invalid": Rule(
        "vLLM stops: a target is no regular expression", "correct the expression"
    ),
    "target_unexamined": Rule(
        "what these expressions match is unknown here: other findings may be wrong",
        "write them without look-around and references, and no more than 20,000 characters",
        "warning",
    ),
    "expert_format": Rule(
        "vLLM builds the experts for another format: it stops, or reads them wrong",
        "restore expert_dtype from the upstream config.json",
    ),
    "draft_format": Rule(
        "vLLM gives the draft's experts the parameters of the target's format: their scales do "
        "not fit",
        "serve without speculation, or with a draft in the target's format, or with a patch that "
        "decides per layer",
        "none",
        {"experts_alike": "error"},
    ),
    "quant_unmatched": Rule(
        "vLLM builds the module unquantised: KeyError for its weight_scale",
        "name the module where the config says what is quantised, and do not ignore it",
    ),
    "quant_overmatched": Rule(
        "vLLM builds the module quantised and finds no scale for it",
        MEND,
    ),
    "quant_scheme": Rule(
        "what the config says of the module is another format than it is stored in",
        "correct the targets of the config groups, or quantized_layers",
    ),
    "quant_torn": Rule(
        "vLLM stops: different quantization schemes for the shards of a fused module",
        "store all its parts alike",
    ),
    "expert_probe": Rule(
        "vLLM looks experts up as experts.0.gate_proj: they become unquantised (out of memory, "
        "or KeyError w13_weight_packed)",
        MEND,
    ),
    "fused_targets": Rule(
        "builds without packed_modules_mapping stop: unable to find matching target",
        MEND,
        "info",
        {"fused_names_unmapped": "error"},
    ),
    "actorder_static": Rule(
        "older builds do not shard the scales of w2: wrong results or a crash with tensor "
        "parallelism; the stored bytes are the same without it",
        MEND,
        "warning",
        {"actorder_breaks_tp": "error"},
    ),
    "actorder_group": Rule(
        "vLLM stops: group activation order is not supported",
        "quantise again with static order",
        "error",
    ),
    "scale_fmt": Rule(
        "vLLM stops: KeyError 'scale_fmt'", MEND, "none", {"scale_fmt_required": "error"}
    ),
    "compressor_quantised": Rule(
        "vLLM stops: KeyError compressor.fused_wkv_wgate.weight_scale",
        MEND,
        "none",
        {"compressor_unquantised": "error"},
    ),
    "indexer_weights_quantised": Rule(
        "vLLM stops: KeyError indexer.weights_proj.weight_scale",
        MEND,
        "none",
        {"indexer_weights_unquantised": "error"},
    ),
    "expert_dtype": Rule(
        "expert_dtype fp4 makes vLLM rename weight_scale to weight_scale_inv: KeyError",
        MEND,
        "info",
        {"fp4_renames_scales": "error"},
    ),
    "swiglu_clamp": Rule(
        "routed experts run without the SwiGLU limit: slightly wrong results, no message",
        "serve with vLLM 0.33 or newer",
        "none",
        {"swiglu_unclamped": "warning"},
    ),
}
