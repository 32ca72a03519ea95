"""What vLLM's own classes do, printed as JSON. Run with the Python of a vLLM environment and the
Python sources to look at leading its path; no GPU and no compiled extension is needed.

    PYTHONPATH=SOURCES python behaviour.py FACT...
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
from types import SimpleNamespace
from unittest.mock import MagicMock

import torch

CHECKPOINT = {
    "quant_method": "compressed-tensors",
    "format": "mixed-precision",
    "ignore": ["lm_head"],
    "config_groups": {
        "attention": {
            "format": "float-quantized",
            "targets": ["re:.*(wq_a|wq_b|wkv|wgate|wo_a|wo_b|weights_proj)$"],
            "weights": {
                "num_bits": 8,
                "type": "float",
                "strategy": "block",
                "block_structure": [128, 128],
                "symmetric": True,
                "dynamic": False,
            },
            "input_activations": {
                "num_bits": 8,
                "type": "float",
                "strategy": "group",
                "group_size": 128,
                "symmetric": True,
                "dynamic": True,
            },
        }
    },
}
IGNORED = {**CHECKPOINT, "ignore": ["lm_head", "re:.*compressor.*", "re:.*weights_proj"]}


def quant_config(checkpoint):
    from vllm.model_executor.layers.quantization.compressed_tensors import compressed_tensors
    from vllm.models.deepseek_v4.nvidia.model import DeepseekV4ForCausalLM

    config = compressed_tensors.CompressedTensorsConfig.from_config(checkpoint)
    # What the model loader does with the attribute of the model class.
    config.packed_modules_mapping = getattr(DeepseekV4ForCausalLM, "packed_modules_mapping", {})
    return config


def shapes(module):
    return {name: list(parameter.shape) for name, parameter in module.named_parameters()}


def without_kernels():
    """Leave out which kernel multiplies: the machine decides that, and most CPUs have none."""
    import vllm.model_executor.layers.quantization.compressed_tensors.schemes  # noqa: F401

    for name, module in list(sys.modules.items()):
        if ".compressed_tensors.schemes." in name:
            for attribute in list(vars(module)):
                if re.fullmatch(r"init_\w+_linear_kernel", attribute):
                    setattr(module, attribute, MagicMock())


def packed_modules(_):
    from vllm.models.deepseek_v4.nvidia.model import DeepseekV4ForCausalLM

    return getattr(DeepseekV4ForCausalLM, "packed_modules_mapping", None)


def compressor(vllm_config, checkpoint=CHECKPOINT):
    """The parameters of a compressor's projection."""
    from vllm.models.deepseek_v4.compressor import DeepseekCompressor

    without_kernels()
    vllm_config.quant_config = quant_config(checkpoint)
    made = DeepseekCompressor(vllm_config, 4, 1024, 512, prefix="model.layers.2.attn.compressor")
    return shapes(made.fused_wkv_wgate)


def plain_compressor(vllm_config):
    return compressor(vllm_config, IGNORED)


def native_compressor(vllm_config):
    """With the native FP8 config, whose checkpoints keep the compressor in bf16."""
    from vllm.model_executor.layers.quantization.fp8 import Fp8Config
    from vllm.models.deepseek_v4.compressor import DeepseekCompressor

    vllm_config.quant_config = Fp8Config(True, "dynamic", weight_block_size=[128, 128])
    made = DeepseekCompressor(vllm_config, 4, 1024, 512, prefix="model.layers.2.attn.compressor")
    return shapes(made.fused_wkv_wgate)


def moe_method(actorder, ranks):
    """A W4A16 Marlin MoE method, and a layer with its weights, as one of some ranks has them."""
    from compressed_tensors.quantization import QuantizationArgs
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
        compressed_tensors_moe_wna16_marlin as module,
    )

    method = next(
        value
        for name, value in vars(module).items()
        if name.endswith("MoEMethod") and value.__module__ == module.__name__
    )
    weights = QuantizationArgs(
        num_bits=4, type="int", strategy="group", group_size=128, symmetric=True, actorder=actorder
    )
    config = SimpleNamespace(is_act_and_mul=True, swiglu_limit=10.0, disable_inplace=False)
    made = method(weights, None, config)
    layer = torch.nn.Module()
    made.create_weights(
        layer,
        num_experts=2,
        hidden_size=512,
        intermediate_size_per_partition=2048 // ranks,
        params_dtype=torch.bfloat16,
        intermediate_size_full=2048,
        weight_loader=None,
    )
    return made, layer


def activation_order(_):
    """Shape of the down projection's scales on one of 8 ranks, by activation order."""
    found = {}
    for order in (None, "static", "group"):
        method, layer = moe_method(order, 8)
        found[str(order)] = {
            "w2_scale": list(layer.w2_weight_scale.shape),
            "full": bool(layer.w2_weight_scale.load_full_w2),
            "is_k_full": method.is_k_full,
        }
    return found


def swiglu_limit(_):
    method, layer = moe_method(None, 1)
    return method.get_fused_moe_quant_config(layer).gemm1_clamp_limit


NVFP4 = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "scale_fmt": "ue8m0",
    "weight_block_size": [128, 128],
    "moe_quant_algo": "NVFP4",
    "ignore": ["mtp.*"],
    "quantized_layers": {
        f"layers.{i}.ffn.experts": {"quant_algo": "NVFP4", "group_size": 16} for i in range(4)
    },
}
"""As ModelOpt writes it of four layers: the model's experts in NVFP4, the draft's as they were."""
EXPERTS, HIDDEN, INTER = 4, 256, 128


def experts(vllm_config, prefix, checkpoint):
    """The routed experts of a layer, with the parameters that vLLM makes for them."""
    from vllm.model_executor.layers.fused_moe.layer import FusedMoEFactory
    from vllm.model_executor.layers.quantization import modelopt, mxfp4
    from vllm.models.deepseek_v4.quant_config import DeepseekV4FP8Config

    # Which kernel multiplies is left out: the machine decides that.
    modelopt.select_nvfp4_moe_backend = lambda **_: (MagicMock(), MagicMock())
    modelopt.is_global_sf_supported_for_nvfp4_backend = lambda _: False
    marlin = mxfp4.Mxfp4MoeBackend.MARLIN
    mxfp4.select_deepseek_v4_mxfp4_moe_backend = lambda *_, **__: (marlin, MagicMock())
    model = vllm_config.model_config
    model.hf_config.quantization_config, model.hf_config.expert_dtype = checkpoint, "fp4"
    model.hf_text_config.num_hidden_layers = 4
    return FusedMoEFactory(
        num_experts=EXPERTS,
        top_k=2,
        hidden_size=HIDDEN,
        intermediate_size=INTER,
        renormalize=True,
        quant_config=DeepseekV4FP8Config.from_config(checkpoint),
        prefix=f"{prefix}.ffn.experts",
        ckpt_names=("w1", "w2", "w3"),
        params_dtype=torch.bfloat16,
    )


def expert_formats(vllm_config):
    """Columns that share a scale, of layers of a model with four and of its draft: named by its
    config, ignored by it, and not named."""
    others = {
        **NVFP4,
        "ignore": ["layers.2.ffn.experts"],
        "quantized_layers": {"layers.[12].ffn.experts": {"quant_algo": "NVFP4"}},
    }
    cases = {"1": NVFP4, "4": NVFP4, "2": others, "3": others, "6": {**NVFP4, "ignore": []}}
    named = {f"mtp.{stage}.ffn.experts": {"quant_algo": "NVFP4"} for stage in range(3)}
    cast = {**NVFP4, "ignore": [], "quantized_layers": NVFP4["quantized_layers"] | named}
    found = {}
    for layer, checkpoint in cases.items():
        made = experts(vllm_config, f"model.layers.{layer}", checkpoint)
        vllm_config.compilation_config.static_forward_context.clear()
        found[layer] = HIDDEN // made.routed_experts.w13_weight_scale.shape[-1]
    plain = {key: value for key, value in NVFP4.items() if key != "moe_quant_algo"}
    for name, checkpoint in (("cast", cast), ("native", plain)):
        made = experts(vllm_config, "model.layers.4", checkpoint)
        vllm_config.compilation_config.static_forward_context.clear()
        found[name] = HIDDEN // made.routed_experts.w13_weight_scale.shape[-1]
    return found


def draft_experts_load(vllm_config):
    """Whether the draft's own loader puts each of its experts' MXFP4 tensors where it belongs."""
    from vllm.models.deepseek_v4.nvidia.dspark import DSparkDeepseekV4ForCausalLM

    draft = DSparkDeepseekV4ForCausalLM.__new__(DSparkDeepseekV4ForCausalLM)
    torch.nn.Module.__init__(draft)
    draft.config = SimpleNamespace(n_routed_experts=EXPERTS, expert_dtype="fp4")
    draft.quant_config, draft.pad_shared_expert = None, False
    draft.model = torch.nn.Module()
    draft.model.confidence_head = None
    draft.model.layers = torch.nn.ModuleList()
    for stage in range(3):
        layer = torch.nn.Module()
        layer.ffn = torch.nn.Module()
        layer.ffn.use_native_mega_moe, layer.ffn.n_redundant_experts = False, 0
        layer.ffn.experts = experts(vllm_config, f"model.layers.{4 + stage}", NVFP4)
        draft.model.layers.append(layer)
    stored = dict(draft_tensors())
    names = draft.load_weights(stored.items())
    for name, tensor in stored.items():
        _, stage, _, _, expert, leaf, kind = name.split(".")
        routed = draft.model.layers[int(stage)].ffn.experts.routed_experts
        suffix = "weight_scale" if kind == "scale" else "weight"
        there = getattr(routed, f"{'w2' if leaf == 'w2' else 'w13'}_{suffix}")[int(expert)]
        if leaf != "w2":  # gate and up projection lie one below the other
            there = there[:INTER] if leaf == "w1" else there[INTER:]
        if not torch.equal(there.view(torch.uint8), tensor.view(torch.uint8)):
            return f"{name} is not where it belongs"
    return f"{len(stored)} tensors in {len(names)} parameters"


def draft_tensors():
    """(name, tensor) of all experts of a draft of three stages, each of other bytes."""
    number = 0
    for stage in range(3):
        for expert in range(EXPERTS):
            for leaf in ("w1", "w2", "w3"):
                out, columns = (HIDDEN, INTER) if leaf == "w2" else (INTER, HIDDEN)
                base = f"mtp.{stage}.ffn.experts.{expert}.{leaf}"
                for kind, width in (("weight", columns // 2), ("scale", columns // 32)):
                    number += 7
                    values = (torch.arange(out * width) + number) % 120
                    tensor = values.to(torch.uint8).reshape(out, width)
                    stored = torch.float8_e8m0fnu if kind == "scale" else torch.int8
                    yield f"{base}.{kind}", tensor.view(stored)


FACTS = {
    fact.__name__: fact
    for fact in (
        packed_modules,
        compressor,
        plain_compressor,
        native_compressor,
        activation_order,
        swiglu_limit,
        expert_formats,
        draft_experts_load,
    )
}


@contextlib.contextmanager
def world():
    """A process group of one, and a configuration with what the classes read."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel

    vllm_config = VllmConfig()
    vllm_config.model_config = SimpleNamespace(
        dtype=torch.bfloat16,
        is_moe=True,
        max_model_len=4096,
        hf_config=SimpleNamespace(qk_rope_head_dim=64, rms_norm_eps=1e-6),
        hf_text_config=SimpleNamespace(model_type="deepseek_v4"),
    )
    torch.set_default_dtype(torch.bfloat16)
    with set_current_vllm_config(vllm_config), tempfile.NamedTemporaryFile() as file:
        init_distributed_environment(1, 0, f"file://{file.name}", 0, "gloo")
        initialize_model_parallel()
        yield vllm_config


def main() -> None:
    with contextlib.redirect_stdout(sys.stderr), world() as vllm_config:
        answers = {}
        for name in sys.argv[1:]:
            vllm_config.compilation_config.static_forward_context.clear()
            try:
                answers[name] = FACTS[name](vllm_config)
            except Exception as error:
                answers[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
