"""The tests can fail: each bug of a table is planted in a copy of the package, and the test that is there for it must see it.

A bug is a file of the package, a text that stands there once, what it is replaced by, and a test. A server that has imported what takes
long forks a process for each.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
HEAVY = ["pytest", "numpy", "pydantic", "torch", "torch.utils.flop_counter", "torch._dynamo", "tokenizers",
         "transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama"]  # fmt: skip
PYTEST = 100
"""Added to pytest's exit codes, so that no crash looks like a failed test."""


class Bug(NamedTuple):
    file: str
    right: str
    wrong: str
    test: str


ATTENTION = "test_attention.py::TestReferences::test_"
MODEL = "test_model_variants.py::"
GOLDEN = "test_golden.py::test_the_first_losses_are_those_that_were_kept"
BUGS = {
    # attention: what is seen
    "full window: the next token is seen": Bug(
        "variants/window.py", "return key <= query\n", "return key <= query + 1\n",
        "test_attention.py::test_a_token_is_seen_where_it_should_be_and_nowhere_else"),
    "sliding window: one token too many": Bug(
        "variants/window.py", "query - key < self.size", "query - key <= self.size", ATTENTION + "a_sliding_window_equals_mistrals"),
    "plain attention: not causal": Bug(
        "variants/_attend.py", "is_causal=seen.mask is None", "is_causal=False", "test_variants.py::test_gives_logits_and_is_causal"),
    "document masking: a document starts a token late": Bug(
        "variants/_attend.py", "(tokens == separator).cumsum(1)", "(tokens == separator).cumsum(1).roll(1, 1)",
        "test_attention.py::test_a_masked_document_has_no_gradient_from_a_later_one"),
    # attention: scores
    "alibi: nearer keys score less": Bug(
        "variants/_attend.py", "-slopes[:, None, None] * (query - key)", "slopes[:, None, None] * (query - key)",
        ATTENTION + "alibi_equals_blooms_scores"),
    "flexattention: slopes of the other sign": Bug(
        "variants/_attend.py", "score - slopes[h] * (i - j)", "score + slopes[h] * (i - j)",
        "test_attention.py::test_flexattention_and_dense_masks_are_equal"),
    "soft cap: no scale": Bug(
        "variants/_attend.py", "k.float().mT * (self.scale / cap)", "k.float().mT / cap", ATTENTION + "a_soft_cap_equals_gemma2s"),
    "soft cap: heads share keys in another order": Bug(
        "variants/_attend.py", "x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)", "x.repeat(1, q.shape[1] // x.shape[1], 1, 1)",
        ATTENTION + "a_soft_cap_equals_gemma2s"),
    "scale: torch's, not the initialization's": Bug(
        "variants/_attend.py", "else 0.0, scale=self.scale,", "else 0.0,", ATTENTION + "the_scale_is_the_initializations"),
    "attention dropout: at evaluation too": Bug(
        "variants/_attend.py", "dropout_p=self.dropout if self.training else 0.0", "dropout_p=self.dropout",
        "test_attention.py::test_dropout_of_the_weights_keeps_their_mean_and_ends_with_training"),
    "mha, gqa, mqa: keys and values swapped": Bug(
        "variants/attention.py", "q, k, v = heads.split", "q, v, k = heads.split", ATTENTION + "shared_heads_equal_llamas"),
    "mla: scale of a narrower query": Bug(
        "variants/_attend.py", "attention_scale / math.sqrt(wider)", "attention_scale",
        ATTENTION + "latent_attention_equals_deepseek_v3s"),
    "mla: the latent is not normalized": Bug(
        "variants/attention.py", "latent, shared, q_rotated = self.kv_norm(latent)", "latent, shared, q_rotated = latent",
        ATTENTION + "latent_attention_equals_deepseek_v3s"),
    "qk-norm: after rotation": Bug(
        "variants/attention.py", "context.rotate(self.q_norm(q))", "self.q_norm(context.rotate(q))",
        ATTENTION + "qk_rmsnorm_equals_qwen3s"),
    "qk-norm: keys by the queries' norm": Bug(
        "variants/attention.py", "self.k_norm(k)", "self.q_norm(k)", ATTENTION + "qk_layernorm_equals_persimmons"),
    "gqa: any number of heads goes": Bug(
        "variants/attention.py", "if recipe.model.n_heads % n_kv_heads:", "if False:",
        "test_attention.py::test_what_cannot_go_together_is_refused_with_the_reason"),
    # positions
    "rope: wrong sign": Bug(
        "variants/position.py", "first * cos - second * sin", "first * cos + second * sin",
        "test_position.py::test_rotations_equal_llamas"),
    "rope: angles in the format of its input": Bug(
        "variants/position.py", "cos, sin = _rows(self.cos, x.shape[-2], at),", "cos, sin = _rows(self.cos, x.shape[-2], at).to(x.dtype),",
        "test_position.py::test_rotations_of_bf16_are_computed_in_fp32"),
    "sinusoidal: cosines first": Bug(
        "variants/position.py", "(angle.sin(), angle.cos())", "(angle.cos(), angle.sin())",
        "test_position.py::test_sinusoids_equal_their_equation"),
    "learned: the last positions": Bug(
        "variants/position.py", "_rows(self.table.weight, x.shape[1], at)", "self.table.weight[-x.shape[1] :]",
        "test_position.py::test_learned_positions_add_a_vector_per_position"),
    "alibi: slopes between powers of two": Bug(
        "variants/position.py", "rest + 0.5", "rest + 1.0", "test_position.py::test_slopes_equal_blooms_and_mpts"),
    # norms, activations, blocks
    "layernorm: eps ignored": Bug(
        "variants/norm.py", "super().__init__(dim, eps=eps, bias=bias)", "super().__init__(dim, eps=0.1, bias=bias)",
        MODEL + "TestNorms::test_layernorm_equals_its_equation"),
    "rmsnorm: with the mean taken off": Bug(
        "variants/norm.py", "super().forward(x.to(self.weight.dtype))", "super().forward((x - x.mean(-1, True)).to(self.weight.dtype))",
        MODEL + "TestNorms::test_rmsnorm_equals_llamas"),
    "rmsnorm: without eps": Bug(
        "variants/norm.py", "super().__init__(dim, eps=eps)\n", "super().__init__(dim, eps=1e-12)\n",
        MODEL + "TestNorms::test_rmsnorm_equals_llamas"),
    "dynamic tanh: without its number": Bug(
        "variants/norm.py", "torch.tanh(self.alpha * x)", "torch.tanh(x)", MODEL + "TestNorms::test_dynamic_tanh_equals_its_equation"),
    "relu2: not squared": Bug(
        "variants/activation.py", "F.relu(x).square()", "F.relu(x)", MODEL + "test_activations_equal_torch_and_transformers"),
    "swiglu: beta ignored": Bug(
        "variants/activation.py", "(self.beta * gate).sigmoid()", "gate.sigmoid()",
        MODEL + "test_activations_equal_torch_and_transformers"),
    "gated units: gate and up swapped": Bug(
        "model.py", "self.activation(*hidden.chunk(2, dim=-1))", "self.activation(*hidden.chunk(2, dim=-1)[::-1])",
        MODEL + "test_the_gate_comes_before_what_it_gates"),
    "gated units: half the width": Bug(
        "_resolve.py", "(2 / 3 if gated else 1)", "(1 / 2 if gated else 1)",
        "test_recipe.py::test_gated_units_have_two_thirds_of_the_width"),
    "parallel block: one after the other": Bug(
        "variants/block.py", "lambda x: attention(x) + feed_forward(x)", "lambda x: attention(x) + feed_forward(x + attention(x))",
        MODEL + "test_parallel_branches_equal_phis_layer"),
    "pre-norm: the stream itself is normalized": Bug(
        "variants/placement.py", "return x + branch(self.norm(x))", "return self.norm(x) + branch(self.norm(x))",
        MODEL + "test_a_norm_before_or_after_the_branch_equals_torchs_layer"),
    "post-norm: before the sum": Bug(
        "variants/placement.py", "self.norm(x + branch(x))", "x + self.norm(branch(x))",
        MODEL + "test_a_norm_before_or_after_the_branch_equals_torchs_layer"),
    "sandwich: one slice of bread": Bug(
        "variants/placement.py", "self.output_norm(branch(self.norm(x)))", "branch(self.norm(x))",
        MODEL + "test_norms_on_both_sides_of_the_branch_equal_gemma2s_layer"),
    "decoder: no norm before the head": Bug(
        "model.py", 'final = model.placement.variant.trait("final_norm")', "final = False",
        "test_convert.py::test_their_weights_give_their_logits_in_our_decoder"),
    # initialization
    "gpt2: residual scale of n_layers": Bug(
        "variants/init.py", "1 / math.sqrt(2 * model.n_layers)", "1 / math.sqrt(model.n_layers)",
        "test_init.py::test_matrices_have_the_stated_spread"),
    "mup: rate as at the base": Bug(
        "variants/init.py", "return 1 / self.width if", "return 1.0 if",
        "test_init.py::test_with_mup_a_step_moves_logits_and_stream_as_far_at_every_width"),
    "mup: logits as at the base": Bug(
        "variants/init.py", "self.output_scale = 1 / self.width", "self.output_scale = 1.0",
        "test_init.py::test_with_mup_a_step_moves_logits_and_stream_as_far_at_every_width"),
    "mup: any optimizer goes": Bug(
        "variants/init.py", 'if not recipe.optimizer.variant.trait("adam_like", False):', "if False:",
        "test_init.py::test_mup_is_refused_where_its_rule_does_not_hold"),
    # optimizers
    "adamw: betas swapped": Bug(
        "variants/optimizer.py", "betas=(beta1, beta2), eps=eps", "betas=(beta2, beta1), eps=eps",
        "test_optimizers.py::test_adamw_equals_torchs"),
    "sgd: no nesterov": Bug(
        "variants/optimizer.py", "momentum=momentum, nesterov=nesterov, fused", "momentum=momentum, fused",
        "test_optimizers.py::test_sgd_equals_torchs"),
    "lion: one beta for both": Bug(
        "variants/optimizer.py", 'torch._foreach_lerp(moments, grads, 1 - group["beta1"])',
        'torch._foreach_lerp(moments, grads, 1 - group["beta2"])', "test_optimizers.py::test_lion_equals_its_published_algorithm"),
    "adafactor: update not clipped": Bug(
        "variants/optimizer.py", 'rate / (_rms(update) / group["clip"]).clamp(min=1.0)', "rate",
        "test_optimizers.py::test_adafactor_equals_torchs"),
    "adafactor: waits for the device": Bug(
        "variants/optimizer.py", 't.rsqrt().clamp(max=group["lr"])', 't.max().rsqrt().clamp(max=group["lr"]).item()',
        "test_optimizers_in_place.py::test_no_optimizer_reads_from_the_device"),
    "adafactor: one parameter a batch": Bug(
        "variants/_parameters.py", "batches[pair[0].shape]", "batches[pair[0]]",
        "test_optimizers_in_place.py::test_a_deeper_model_is_no_more_operators"),
    "muon: scale of another rule": Bug(
        "variants/optimizer.py", "0.2 * max(rows, columns) ** 0.5", "0.2 * min(rows, columns) ** 0.5",
        "test_optimizers.py::test_muon_equals_torchs_on_each_matrix_and_adamw_on_the_rest"),
    "muon: merged matrices as one": Bug(
        "variants/_parameters.py", "parts or len(tensor)", "len(tensor)",
        "test_optimizers.py::test_muon_equals_torchs_on_each_matrix_and_adamw_on_the_rest"),
    "muon: nobody says what is merged": Bug(
        "model.py", "parts.get(id(parameter), ())", "()", "test_optimizers.py::test_muon_takes_merged_projections_apart"),
    "newton-schulz: another polynomial": Bug(
        "variants/optimizer.py", "3.4445, -4.7750, 2.0315", "3.4445, -4.7750, 1.0315",
        "test_optimizers.py::test_newton_schulz_brings_singular_values_near_one"),
    "schedule-free: no bias correction": Bug(
        "variants/optimizer.py", "torch._foreach_div(v, correction)", "torch._foreach_div(v, 1.0)",
        "test_optimizers.py::test_schedule_free_equals_its_package"),
    "schedule-free: evaluated elsewhere": Bug(
        "variants/optimizer.py", '1 - 1 / group["beta1"]', '1 - group["beta1"]',
        "test_optimizers.py::test_schedule_free_trains_at_one_point_and_is_evaluated_at_another"),
    "restart: keeps the state": Bug(
        "variants/_parameters.py", "value.zero_()", "pass", "test_optimizers_in_place.py::test_a_restarted_optimizer_is_a_new_one"),
    "restart: a new state": Bug(
        "variants/_parameters.py", "in optimizer.state.values():", "in [*optimizer.state.values(), optimizer.state.clear() or {}]:",
        "test_optimizers_in_place.py::test_state_stays_where_it_is"),
    "schedule-free: averages on after a restart": Bug(
        "variants/optimizer.py", "group[name].zero_()", "pass", "test_optimizers_in_place.py::test_a_restarted_optimizer_is_a_new_one"),
    "weight decay: read from the device": Bug(
        "variants/_parameters.py", "1 - (share if skipped is None", "1 - (float(share) if skipped is None",
        "test_optimizers_in_place.py::test_no_optimizer_reads_from_the_device"),
    "weight decay: in a step that is skipped": Bug(
        "variants/_parameters.py", "share * (1 - skipped)", "share",
        "test_optimizers_in_place.py::test_a_step_on_gradients_that_overflowed_changes_nothing"),
    "sgd: a skipped step leaves its momentum unset": Bug(
        "variants/optimizer.py", 'kept(self.state[p], "momentum_buffer", p)', "pass",
        "test_optimizers_in_place.py::test_a_step_on_gradients_that_overflowed_changes_nothing"),
    "weight decay: on norms and biases": Bug(
        "model.py", '"vectors_and_embeddings": not matrix or embedding', '"vectors_and_embeddings": embedding',
        "test_optimizers.py::test_weight_decay_skips_what_it_is_told_to"),
    "weight decay: less where the rate is less": Bug(
        "variants/_parameters.py", "weight_decay / rate if", "weight_decay if",
        "test_optimizers.py::test_decay_takes_the_same_share_whatever_the_rate_of_a_group"),
    # schedules and clipping
    "warmup: a step late": Bug(
        "train.py", "(step + 1) / warmup if", "step / warmup if", "test_schedules.py::test_schedules_equal_those_of_transformers"),
    "decay: a step late": Bug(
        "train.py", "schedule((step + 1 - warmup) / after", "schedule((step - warmup) / after",
        "test_schedules.py::test_schedules_equal_those_of_transformers"),
    "cosine: a quarter of a wave": Bug(
        "variants/lr_schedule.py", "math.cos(math.pi * progress)", "math.cos(math.pi * progress / 2)",
        "test_schedules.py::test_schedules_equal_those_of_transformers"),
    "linear: to zero whatever is final": Bug(
        "variants/lr_schedule.py", "return 1 - (1 - final) * progress", "return 1 - progress",
        "test_schedules.py::test_a_final_ratio_lifts_the_whole_decay"),
    "wsd: decays from the start": Bug(
        "variants/lr_schedule.py", "max(0.0, 1 - (1 - progress) / decay)", "progress",
        "test_schedules.py::test_schedules_equal_those_of_transformers"),
    "inverse square root: of the steps after warmup": Bug(
        "variants/lr_schedule.py", "warmup + progress * (1 - warmup)", "warmup + progress",
        "test_schedules.py::test_schedules_equal_those_of_transformers"),
    "schedule: no step follows it": Bug(
        "step.py", "torch.mul(self._peaks, self._factor, out", "torch.mul(self._peaks, 1.0, out", GOLDEN + "[lr_schedule: cosine]"),
    "clipping by norm: small gradients grow": Bug(
        "variants/clipping.py", ".clamp(max=1.0)", "", "test_schedules.py::test_clipping_equals_torchs"),
    "clipping by value: from above alone": Bug(
        "variants/clipping.py", "clamp_(lowest, limit)", "clamp_(max=limit)", "test_schedules.py::test_clipping_equals_torchs"),
    "clipping: before gradients are unscaled": Bug(
        "step.py", "            torch._foreach_div_(gradients, self.scale.factor)\n", "            pass\n",
        "test_step.py::test_gradients_in_few_bits_are_those_in_many_unscaled"),
    # the step and the objective
    "accumulation: gradients of the sum": Bug(
        "step.py", "objective = objective / accumulation", "objective = objective",
        "test_train.py::test_any_split_into_micro_batches_gives_the_same_gradient"),
    "bf16 parameters: the model never hears of an update": Bug(
        "step.py", "            torch._foreach_copy_(list[Tensor](self.parameters), list[Tensor](self.updated))\n", "            pass\n",
        "test_step.py::test_a_bf16_model_is_updated_through_fp32_copies"),
    "bf16 activations: a norm widens the stream": Bug(
        "variants/norm.py", "(x.to(self.weight.dtype)).to(x.dtype)", "(x.to(self.weight.dtype))",
        "test_variants.py::test_leaves_the_residual_stream_in_its_format"),
    "bf16: no autocast": Bug(
        "step.py", "enabled=dtype is not None", "enabled=False", "test_step.py::test_products_are_in_the_recipes_format"),
    "tf32: off": Bug(
        "train.py", '"high" if recipe.train.precision.build().tf32 else "highest"', '"highest"',
        "test_step.py::test_tf32_holds_for_the_run_and_not_beyond_it"),
    "z-loss: a reward": Bug(
        "_loss.py", "objective + z_loss * logits", "objective - z_loss * logits",
        "test_step.py::test_label_smoothing_and_z_loss_follow_their_equations_and_only_in_training"),
    "label smoothing: at evaluation too": Bug(
        "model.py", "(self.label_smoothing, self.z_loss) if self.training else (0.0, 0.0)", "(self.label_smoothing, self.z_loss)",
        "test_step.py::test_label_smoothing_and_z_loss_follow_their_equations_and_only_in_training"),
    "output soft cap: logits in units of the cap": Bug(
        "_loss.py", "cap * torch.tanh(logits / cap)", "torch.tanh(logits / cap)",
        "test_step.py::test_output_soft_cap_bounds_the_logits"),
    "dropout: at evaluation too": Bug(
        "step.py", "self.model.train(same)", "self.model.train()", "test_train.py::test_dropout_zero_is_off_and_each_place_acts"),
    "dropout: the feed-forward block's is attention's": Bug(
        "model.py", "nn.Dropout(model.dropout.feed_forward_output)", "nn.Dropout(model.dropout.attention_output)",
        "test_train.py::test_dropout_zero_is_off_and_each_place_acts"),
    "checkpointing, full: keeps all": Bug(
        "variants/checkpointing.py", "return checkpoint(function, *args, use_reentrant=False)\n", "return function(*args)\n",
        "test_step.py::test_checkpointing_keeps_less_and_selective_repeats_no_matrix_product"),
    "checkpointing, selective: keeps the wrong half": Bug(
        "variants/checkpointing.py", "if operator in KEPT", "if operator not in KEPT",
        "test_step.py::test_checkpointing_keeps_less_and_selective_repeats_no_matrix_product"),
    "loss chunks: gradients of the sum": Bug(
        "_loss.py", "grad = grads[1] / ctx.tokens", "grad = grads[1]", "test_loss.py::test_chunks_change_neither_loss_nor_gradient"),
    "loss chunks: no gradient of the z-loss": Bug(
        "_loss.py", "grad = grad * (1 + 2 * z_loss * log_z)[:, None]", "pass",
        "test_loss.py::test_chunks_change_neither_loss_nor_gradient"),
    "loss chunks: the slope of the cap forgotten": Bug(
        "_loss.py", "grad = grad * (1 - (logits / cap).square())", "pass",
        "test_loss.py::test_chunks_change_neither_loss_nor_gradient"),
    "loss chunks: all at once": Bug(
        "_loss.py", "zip(hidden.to(dtype).chunk(chunks), targets.chunk(chunks), strict=True):", "[(hidden.to(dtype), targets)]:",
        "test_loss.py::test_logits_are_one_chunks_and_computed_once"),
    "loss chunks: sums overflow in fp16": Bug(
        "_loss.py", "FP16_SHRINK = 2.0**-5", "FP16_SHRINK = 1.0", "test_loss.py::test_a_sum_over_tokens_does_not_overflow_in_fp16"),
    # what a prepared step leaves to the next trial, and how trials take turns
    "begin: the optimizer's state of the last trial": Bug(
        "step.py", "            restart(self.optimizer)\n", "            pass\n", "test_kept.py::test_a_step_begun_again_is_a_new_one"),
    "begin: the weights of the last trial": Bug(
        "step.py", "masters.get(id(tensor), tensor).copy_(values)", "pass", "test_kept.py::test_a_step_begun_again_is_a_new_one"),
    "begin: the loss scale of the last trial": Bug(
        "step.py", "            self.scale.restart()\n", "            pass\n",
        "test_kept.py::test_a_step_begun_again_scales_its_losses_as_a_new_one"),
    "begin: a decay that the groups are not given": Bug(
        "step.py", 'self._decays.copy_(torch.tensor([group["decay"] for group in groups]))', "pass",
        "test_kept.py::test_recipes_that_differ_in_what_lies_on_the_device_share_a_step"),
    "begin: a limit of clipping that stays": Bug(
        "step.py", "            value.fill_(recipe.train.clipping.options[name])\n", "            value.fill_(1.0)\n",
        "test_kept.py::test_recipes_that_differ_in_what_lies_on_the_device_share_a_step"),
    "kept: a step of another shape": Bug(
        "train.py", "(step.device, step.recipe.shape()) != (device, recipe.shape())", "step.device != device",
        "test_kept.py::test_recipes_that_are_compiled_differently_do_not"),
    "turns: the second half of a round forgotten": Bug(
        "turns.py", "logs.append((b + c - a - d) / 2)", "logs.append(b - a)", "test_speed.py::TestRatio::test_a_drift_cancels"),
    "turns: the normal distribution's interval": Bug(
        "turns.py", "stdtrit(len(logs) - 1,", "stdtrit(1e6,", "test_speed.py::TestRatio::test_it_is_students"),
    "rows: a new worker takes a shape that another has compiled": Bug(
        "rows.py", "rank.get(self._shapes[index], 1)", "0",
        "test_rows.py::test_a_freed_worker_gets_the_shape_it_compiled_and_a_new_one_a_fresh_shape"),
    "feed: one batch for ever": Bug(
        "feed.py", "self.on_device[step]", "self.on_device[0]",
        "test_kept.py::test_windows_are_those_of_the_order_wherever_the_tokens_lie"),
    "timeline: overlaps counted twice": Bug(
        "timeline.py", "max(0.0, bar.end - max(until, bar.start))", "bar.end - bar.start",
        "test_timeline.py::test_the_share_counts_from_the_start_of_the_run_and_overlaps_once"),
    # data
    "bytes: the separator is a byte": Bug(
        "variants/_encoders.py", "separator = 256", "separator = 97", "test_tokenizers.py::test_decoding_gives_the_text_back"),
    "characters: ids one off": Bug(
        "variants/_encoders.py", "np.arange(2, 2 + len(characters))", "np.arange(1, 1 + len(characters))",
        "test_tokenizers.py::test_decoding_gives_the_text_back"),
    "deduplicated: keeps the copies": Bug(
        "variants/curation.py", "if key not in seen:", "if True:", "test_curation.py::test_of_equal_texts_the_first_is_kept"),
    "quality: a limit that does not pass": Bug(
        "variants/curation.py", "self.min_words <= len(words)", "self.min_words < len(words)",
        "test_curation.py::test_thresholds_are_options_and_the_limit_passes"),
    "curation: of what is held out too": Bug(
        "_preparation.py", "curation.select(fresh)", "fresh", "test_curation.py::test_only_what_is_trained_on_is_curated"),
    "mix: equal shares": Bug(
        "corpus.py", "bounds = np.cumsum([part.weight for part in self.parts])", "bounds = np.cumsum([1.0 for part in self.parts])",
        "test_data.py::test_sources_are_drawn_by_weight_and_run_through_on_their_own"),
    "repetition: every epoch in the same order": Bug(
        "corpus.py", "np.argsort(keys, axis=1, kind=\"stable\").ravel()[:count]", "np.arange(count) % unique",
        "test_data.py::test_repeated_data_are_the_same_sequences_each_epoch_in_another_order"),
    "epochs: cut in the same places": Bug(
        "corpus.py", "offset + seq_len * np.argsort", "seq_len * np.argsort",
        "test_data.py::test_every_epoch_sees_every_window_once_in_another_order_and_cut_elsewhere"),
    "synthetic: the text of another chain": Bug(
        "variants/source.py", "pair = pair % n * n + text[step]", "pair = pair // n * n + text[step]",
        "test_sources.py::test_synthetic_surprise_averages_to_its_entropy_rate"),
    # measures and conversion
    "flops: attention for one layer": Bug(
        "measure.py", "sum(block.attention.score_width for block in model.blocks)", "model.blocks[0].attention.score_width",
        "test_measure.py::test_the_flop_formula_agrees_with_torchs_count"),
    "memory: gradients are activations": Bug(
        "measure.py", 'self._mark("gradients",', 'self._mark("activations",',
        "test_measure.py::test_each_part_is_what_is_there_at_the_peak"),
    "memory: what is freed stays": Bug(
        "measure.py", "self.events.append((key, -size))", "None",
        "test_measure.py::test_the_parts_of_memory_add_up_to_what_the_allocator_reports"),
    "conversion: matrices not transposed": Bug(
        "convert.py", "return weight.T if rule.transposed else weight", "return weight",
        "test_convert.py::test_their_weights_give_their_logits_in_our_decoder"),
    "conversion: gate and up swapped": Bug(
        "convert.py", '("mlp.gate_proj", "mlp.up_proj")', '("mlp.up_proj", "mlp.gate_proj")',
        "test_convert.py::test_our_weights_give_our_logits_in_their_model"),
}  # fmt: skip


def run(package: str, test: str, output: str) -> None:
    """In the forked process: the test against the copy in `package`; ends the process with a code that tells how it went."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(ROOT)
    sys.path[:] = [package, str(ROOT / "tests"), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    import ablate

    assert (ablate.__file__ or "").startswith(package)
    fast = [
        "-m",
        "not slow and not gpu and not fire",
        "-o",
        "addopts=",
        "-x",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
    ]
    fast += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # what the server imported
    code = pytest.main([f"tests/{test}", *fast, "-o", f"pythonpath={package} {ROOT / 'tests'}"])
    sys.stdout.flush()
    os._exit(PYTEST + code)


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_seen(name: str, tmp_path: Path):
    bug = BUGS[name]
    for folder in ("ablate", "registry", "suites"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "ablate" / bug.file
    text = file.read_text(encoding="utf-8")
    assert text.count(bug.right) == 1, f"{bug.file} has {bug.right!r} {text.count(bug.right)} times"
    file.write_text(text.replace(bug.right, bug.wrong), encoding="utf-8")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    output = tmp_path / "output"
    process = context.Process(target=run, args=(str(tmp_path), bug.test, str(output)))
    process.start()
    process.join(240)
    assert process.exitcode == PYTEST + pytest.ExitCode.TESTS_FAILED, (
        f"exit code {process.exitcode}\n{output.read_text()[-3000:]}"
    )
