"""In which number formats a step multiplies matrices and keeps its weights.

`autocast` is the format of matrix products and attention where it is not that of the weights, `parameters` that of the weights in
the model; the residual stream is in the latter, with `narrow_stream` in the former. Optimizer state is always fp32, and so are
losses. `tf32` lets tensor cores round the inputs of fp32 products.
"""

from __future__ import annotations

import torch

from ablate.variants._factor import Factor

precision = Factor("precision", "train.precision", "Number formats of arithmetic and of weights.")


@precision.variant("fp32", reference="IEEE 754", capturable=True)
class FP32:
    """32 bits for everything."""

    autocast: torch.dtype | None = None
    narrow_stream = False
    parameters = torch.float32
    scaled = False
    tf32 = False


@precision.variant("tf32", reference="torch.set_float32_matmul_precision", capturable=True)
class TF32(FP32):
    """fp32 with a mantissa of 10 bits in matrix products on tensor cores; plain fp32 on devices without them, a CPU too."""

    tf32 = True


@precision.variant("bf16", reference="arXiv:1905.12322", capturable=True)
class BF16(FP32):
    """Automatic mixed precision: bf16 (8 bits of exponent, 7 of mantissa) in matrix products, fp32 weights."""

    autocast = torch.bfloat16


@precision.variant(
    "bf16_activations", reference="Megatron-LM, arXiv:1909.08053, without fp32_residual_connection", capturable=True
)
class BF16Activations(BF16):
    """bf16 for all that is passed on: as `bf16`, and the residual stream, with what norms make of it, too; fp32 weights."""

    narrow_stream = True


@precision.variant("fp16", reference="arXiv:1710.03740", capturable=True)
class FP16(FP32):
    """Automatic mixed precision: fp16 (5 bits of exponent, 10 of mantissa) in matrix products, fp32 weights.

    The loss is scaled so that small gradients do not vanish; a step whose gradients overflow is left out and the scale halved.
    """

    autocast = torch.float16
    scaled = True


@precision.variant("bf16_params", reference="arXiv:2203.15556, section 4.1", capturable=True)
class BF16Parameters(FP32):
    """bf16 throughout the model; the optimizer updates fp32 master copies, which are rounded to bf16 after every step."""

    parameters = torch.bfloat16
