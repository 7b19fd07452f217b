"""vLLM on a GPU, whose kernels take experts in few bits as they are stored, unless their widths differ besides."""

from __future__ import annotations

from bench.serving.vllm_engine import VLLM


class VLLMOnGPU(VLLM):
    """vLLM's build for CUDA."""

    name = "vllm-gpu"
    distributions = ("vllm",)
    few_bits = True


ENGINE = VLLMOnGPU()
