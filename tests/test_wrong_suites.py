"""Wrong suites: each is refused in one line of where and what, by the loader, `plan` and `run`, and leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablate import suite
from ablate.errors import UserError

TAIL = "factors:\n  model.attention: [mha, mqa]\n"
GOOD = "name: x\n" + TAIL
FIVE = """\
name: x
factors:
  model.attention: [mha, mqa]
  model.activation: [gelu, swiglu]
  model.norm: [layernorm, rmsnorm]
  model.position: [learned, rope]
  model.dropout: [0.1, 0.0]
"""
BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True))

# name: (content, line or None where the whole file is meant, what the message says)
WRONG: dict[str, tuple[str | bytes, int | None, str]] = {
    "unknown_key": (GOOD + "seds: 3\n", 4, "seds: unknown key 'seds'; did you mean 'seeds'?"),
    "missing_name": (TAIL, 1, "name: is missing"),
    "empty_file": ("", None, "is empty"),
    "only_a_comment": ("# nothing\n", None, "is empty"),
    "list_at_top": ("- name: x\n", 1, "must be a mapping of keys to values, not a list"),
    "text_at_top": ("attention\n", 1, "must be a mapping of keys to values, not 'attention'"),
    "path_in_name": ("name: ../../etc/x\n" + TAIL, 1, "name: must be up to 64 lower-case letters"),
    "slash_in_name": ("name: a/b/c\n" + TAIL, 1, "not 'a/b/c'"),
    "number_as_name": (
        "name: 7\n" + TAIL,
        1,
        "name: must be up to 64 lower-case letters, digits and hyphens, perhaps with a slash, not 7",
    ),
    "newline_in_name": ('name: "x\\n"\n' + TAIL, 1, "name: must be"),
    "long_name": ("name: " + "x" * 65 + "\n" + TAIL, 1, "name: must be up to 64"),
    "description_not_text": (GOOD + "description: [a]\n", 4, "description: must be text, not a list"),
    "control_characters": (GOOD + 'description: "\\e[2J"\n', 4, "description: text with control characters"),
    "nul": (GOOD + "description: \0\n", None, "not YAML"),
    "surrogate": (GOOD + 'description: "\\ud800"\n', 4, "text with control characters"),
    "unknown_scale": (GOOD + "base: {scale: 10mm}\n", 4, "base.scale: unknown scale '10mm'; did you mean '10m'?"),
    "scale_not_text": (GOOD + "base:\n  scale: [nano]\n", 5, "base.scale: unknown scale a list"),
    "unknown_field_in_base": (
        GOOD + "base:\n  model.dmi: 64\n",
        5,
        "base.model.dmi: is not a field of a recipe; did you mean 'model.dim'?",
    ),
    "unknown_field_in_group": (
        GOOD + "base:\n  model:\n    dim: 64\n    layers: 2\n",
        7,
        "base.model.layers: model.layers: is not a field",
    ),
    "group_not_a_mapping": (
        GOOD + "base: {model: 3}\n",
        4,
        "base.model: is a group of fields and must be a mapping, not 3",
    ),
    "seed_in_base": (GOOD + "base: {seed: 1}\n", 4, "base.seed: does not belong here; seeds are a key of their own"),
    "null_base": (GOOD + "base:\n", 4, "base: must be a mapping, not null"),
    "heads_not_divisible": (
        GOOD + "base:\n  model.bias: true\n  model.dim: 66\n",
        6,
        "base.model.dim: model.n_heads: 4 heads do not divide",
    ),
    "batch_not_divisible": (
        GOOD + "base: {batch.tokens: 1000}\n",
        4,
        "1000 tokens are no whole number of sequences of 128",
    ),
    "micro_batch_not_divisible": (
        GOOD + "base: {batch.micro_sequences: 3}\n",
        4,
        "3 does not divide the 4 sequences of a batch",
    ),
    "textual_learning_rate": (GOOD + "base: {optimizer.lr: fast}\n", 4, "base.optimizer.lr: optimizer 'adamw': lr: "),
    "quoted_learning_rate": (GOOD + 'base: {optimizer.lr: "1e-3"}\n', 4, "not '1e-3'"),
    "negative_learning_rate": (GOOD + "base: {optimizer.lr: -1.0e-3}\n", 4, "greater than 0, not -0.001"),
    "negative_steps": (
        GOOD + "base: {train.steps: -5}\n",
        4,
        "base.train.steps: must be a positive whole number, not -5",
    ),
    "half_a_layer": (GOOD + "base: {model.n_layers: 1.5}\n", 4, "base.model.n_layers: must be "),
    "bool_for_int": (GOOD + "base: {model.n_layers: true}\n", 4, "base.model.n_layers: must be "),
    "text_for_int": (
        GOOD + "base: {model.dim: wide}\n",
        4,
        "base.model.dim: must be a positive whole number, not 'wide'",
    ),
    "null_for_int": (GOOD + "base: {model.n_layers: }\n", 4, "base.model.n_layers: must be "),
    "date_for_int": (
        GOOD + "base: {train.steps: 2020-01-01}\n",
        4,
        "base.train.steps: must be a positive whole number, not '2020-01-01'",
    ),
    "dropout_of_one": (GOOD + "base: {model.dropout: 1.0}\n", 4, "must be less than 1, not 1.0"),
    "not_a_number": (GOOD + "base: {optimizer.lr: .nan}\n", 4, "base.optimizer.lr: .nan is not a finite number"),
    "infinite": (GOOD + "base: {optimizer.lr: -.inf}\n", 4, "-.inf is not a finite number"),
    "overflowing_float": (GOOD + "base: {optimizer.lr: 1e999}\n", 4, "1e999 is not a finite number"),
    "huge_integer": (GOOD + f"base: {{model.dim: {10**250}}}\n", 4, "is too large a number"),
    "endless_integer": (GOOD + f"base: {{model.dim: {'9' * 6000}}}\n", 4, "is not a finite number"),
    "huge_but_finite": (
        GOOD + "base: {train.tokens: 1e30}\n",
        4,
        "base.train.tokens: must be a positive whole number, not 1e+30",
    ),
    "multiple_of_nothing": (
        GOOD + "base:\n  model.output_soft_cap: x2\n",
        5,
        "base.model.output_soft_cap: has no value that x2 could be a multiple of",
    ),
    "multiple_of_a_truth": (GOOD + "base: {model.bias: x2}\n", 4, "base.model.bias: must be "),
    "multiple_of_text": (GOOD + "base: {data.source: {files: {paths: a, text: [x2]}}}\n", 4, "text: "),
    "multiple_too_large": (
        GOOD + "base: {train.tokens: x1e10}\n",
        4,
        "x1e10 is too large a multiple; x1e9 is the most",
    ),
    "multiple_that_is_not_whole": (
        "name: x\nfactors:\n  model.n_heads:\n  - x1\n  - x0.6\n",
        5,
        "factors.model.n_heads[1]: x0.6 of 4 is 2.4, which is no whole number",
    ),
    "multiple_in_an_option": (
        "name: x\nfactors:\n  model.attention:\n  - mha\n  - gqa: {n_kv_heads: x0.3}\n",
        5,
        "factors.model.attention[1].gqa.n_kv_heads: attention 'gqa': n_kv_heads: x0.3 of 2 is 0.6, which is no whole number",
    ),
    "same_by_multiple": (
        "name: x\nfactors:\n  model.n_heads: [4, x1]\n",
        3,
        "model.n_heads x1 is the same recipe as model.n_heads 4 at scale nano",
    ),
    "depth_that_is_not_whole": (
        "name: x\nfactors:\n  model.depth_ratio: [1, 0.7]\n",
        3,
        "0.7 times 2 blocks are no whole number of blocks",
    ),
    "epochs_of_everything": (
        GOOD + "base: {train.epochs: 2}\n",
        4,
        "needs data.unique_sequences or data.unique_tokens",
    ),
    "more_repetitions_than_sequences": (
        "name: x\nfactors:\n  data.repetitions: [1, 10000]\n",
        3,
        "a run of 2,344 sequences cannot be 10,000 times the same",
    ),
    "no_factors": ("name: x\nfactors: {}\n", 2, "factors: is empty; leave it out for a suite of one cell"),
    "null_factors": ("name: x\nfactors:\n", 2, "factors: must be a mapping, not null"),
    "factor_list": ("name: x\nfactors:\n- model.attention\n", 2, "factors: must be a mapping, not a list"),
    "unknown_factor": (
        "name: x\nfactors:\n  model.atention: [mha, mqa]\n",
        3,
        "unknown key 'model.atention'; did you mean 'model.attention'?",
    ),
    "short_factor": ("name: x\nfactors:\n  attention: [mha, mqa]\n", 3, "did you mean 'model.attention'?"),
    "seed_as_factor": ("name: x\nfactors:\n  seed: [1, 2]\n", 3, "factors.seed: unknown key 'seed'"),
    "empty_factor": (
        "name: x\nfactors:\n  model.attention: []\n",
        3,
        "factors.model.attention: has no levels; a factor needs two or more",
    ),
    "null_factor": (
        "name: x\nfactors:\n  model.attention:\n",
        3,
        "factors.model.attention: must be a list of levels, not null",
    ),
    "one_level": ("name: x\nfactors:\n  model.attention: [mha]\n", 3, "has one level; a factor needs two or more"),
    "levels_not_a_list": ("name: x\nfactors:\n  model.attention: mha\n", 3, "must be a list of levels, not 'mha'"),
    "unknown_variant": (
        "name: x\nfactors:\n  model.attention:\n  - mha\n  - gqaa\n",
        5,
        "factors.model.attention[1]: unknown attention 'gqaa'",
    ),
    "unknown_option": (
        "name: x\nfactors:\n  optimizer:\n  - adamw\n  - lion: {lrr: 1}\n",
        5,
        "factors.optimizer[1].lion.lrr: optimizer 'lion' has no option 'lrr'",
    ),
    "option_of_the_wrong_type": (
        "name: x\nfactors:\n  model.attention: [mha, {gqa: {n_kv_heads: two}}]\n",
        3,
        "n_kv_heads: ",
    ),
    "options_not_a_mapping": (
        "name: x\nfactors:\n  model.attention: [mha, {gqa: 2}]\n",
        3,
        "options of attention 'gqa' must be a mapping",
    ),
    "two_variants_in_a_level": (
        "name: x\nfactors:\n  model.attention: [mha, {gqa: {}, mqa: {}}]\n",
        3,
        "expected a variant of attention",
    ),
    "level_not_a_variant": (
        "name: x\nfactors:\n  model.attention: [mha, 3]\n",
        3,
        "factors.model.attention[1]: expected a variant of attention",
    ),
    "kv_heads_not_divisible": (
        "name: x\nfactors:\n  model.attention:\n  - mha\n  - gqa: {n_kv_heads: 3}\n",
        5,
        "3 key and value heads do not divide 4",
    ),
    "heads_level_not_divisible": (
        "name: x\nfactors:\n  model.n_heads:\n  - 4\n  - 5\n",
        5,
        "factors.model.n_heads[1]: 5 heads do not divide a width of 64",
    ),
    "impossible_together": (
        "name: x\nfactors:\n  model.attention: [mha, mqa]\n  model.dim: [64, 96]\n  model.n_heads: [4, 3]\n",
        4,
        "model.dim 64 with model.n_heads 3 is impossible: model.n_heads: 3 heads do not divide",
    ),
    "cell_impossible": (
        "name: x\nbase: {model.dim: 96}\nfactors:\n  model.attention: [mha, {gqa: {n_kv_heads: 2}}]\n"
        "  model.n_heads: [4, 3]\n",
        4,
        "model.attention gqa with model.n_heads 3 is impossible: model.attention: 2 key and value heads do not divide "
        "3 query heads; list it under exclude",
    ),
    "duplicate_key": ("name: x\nseeds: 2\nseeds: 3\n" + TAIL, 3, "seeds: is given twice, first on line 2"),
    "duplicate_nested_key": (GOOD + "base:\n  model: {dim: 64, dim: 32}\n", 5, "base.model.dim: is given twice"),
    "duplicate_level": (
        "name: x\nfactors:\n  model.attention:\n  - mha\n  - mqa\n  - mha\n",
        6,
        "factors.model.attention[2]: level mha is there already",
    ),
    "duplicate_level_spelled_otherwise": (
        "name: x\nfactors:\n  model.n_layers: [2, 2.0]\n",
        3,
        "model.n_layers 2.0 is the same recipe as model.n_layers 2",
    ),
    "duplicate_level_by_default": (
        "name: x\nfactors:\n  model.attention: [gqa, {gqa: {n_kv_heads: 2}}]\n",
        3,
        "is the same recipe as",
    ),
    "duplicate_number": ("name: x\nfactors:\n  model.dropout: [0.1, 1e-1]\n", 3, "level 0.1 is there already"),
    "too_many_cells": (
        "name: x\nfactors:\n"
        + "".join(
            f"  {f}: [{', '.join(map(str, range(1, 101)))}]\n" for f in ("model.dim", "train.steps", "model.n_layers")
        ),
        2,
        "factors: make 1000000 cells; 10000 is the most",
    ),
    "unknown_design": (GOOD + "design: half\n", 4, "design: 'half' is not a design; known: "),
    "misspelt_design": (GOOD + "design: optimla\n", 4, "design: 'optimla' is not a design; did you mean 'optimal'?"),
    "listed_design": (GOOD + "design: [full]\n", 4, "design: a list is not a design; known: full, one_at_a_time"),
    "bare_fractional": (
        GOOD + "design: fractional\n",
        4,
        "design: fractional needs to be told more, such as {fractional: {resolution: 4}}",
    ),
    "two_designs": (
        GOOD + "design: {fractional: {resolution: 4}, optimal: {cells: 2}}\n",
        4,
        "design: must be one of fractional and optimal",
    ),
    "misspelt_selection": (
        GOOD + "design:\n  fractoinal: {resolution: 4}\n",
        5,
        "design.fractoinal: unknown key 'fractoinal'; did you mean 'fractional'?",
    ),
    "fraction_of_one": (
        GOOD + "design: {fractional: {resolution: 4}}\n",
        4,
        "design.fractional.resolution: 4 of 1 factors takes all of their combinations; let the design be full",
    ),
    "fraction_of_three_levels": (
        FIVE.replace("[gelu, swiglu]", "[gelu, swiglu, relu]") + "design: {fractional: {resolution: 4}}\n",
        4,
        "factors.model.activation: has 3 levels; a fractional design takes two of each factor, an optimal one any number",
    ),
    "fraction_with_exclude": (
        FIVE + "exclude: [{model.norm: layernorm}]\ndesign: {fractional: {resolution: 4}}\n",
        8,
        "exclude: takes cells out of a fraction",
    ),
    "fraction_of_resolution_six": (
        FIVE + "design:\n  fractional:\n    resolution: 6\n",
        10,
        "design.fractional.resolution: must be a whole number from 3 to 5, not 6",
    ),
    "fraction_without_either": (FIVE + "design: {fractional: {}}\n", 8, "needs a resolution or generators"),
    "fraction_with_both": (
        FIVE + "design: {fractional: {resolution: 3, generators: {}}}\n",
        8,
        "design.fractional: needs a resolution or generators, not both",
    ),
    "misspelt_resolution": (FIVE + "design: {fractional: {resolutoin: 3}}\n", 8, "did you mean 'resolution'?"),
    "no_generators": (FIVE + "design: {fractional: {generators: {}}}\n", 8, "is empty; let the design be full"),
    "generator_of_no_factor": (
        FIVE + "design: {fractional: {generators: {model.drop: [model.norm, model.bias]}}}\n",
        8,
        "generators.model.drop: unknown key 'model.drop'; did you mean 'model.dropout'?",
    ),
    "generator_from_no_factor": (
        FIVE + "design:\n  fractional:\n    generators:\n      model.dropout: [model.norm, model.positoin]\n",
        11,
        "design.fractional.generators.model.dropout[1]: 'model.positoin' is not a factor; did you mean 'model.position'?",
    ),
    "generator_from_a_list": (
        FIVE + "design: {fractional: {generators: {model.dropout: [[model.norm], model.position]}}}\n",
        8,
        "generators.model.dropout[0]: a list is not a factor",
    ),
    "generator_no_list": (
        FIVE + "design: {fractional: {generators: {model.dropout: model.norm}}}\n",
        8,
        "generators.model.dropout: must be a list, not 'model.norm'",
    ),
    "generator_from_itself": (
        FIVE + "design: {fractional: {generators: {model.dropout: [model.norm, model.dropout]}}}\n",
        8,
        "model.dropout is generated itself; name factors that are not",
    ),
    "generator_twice_the_same": (
        FIVE + "design: {fractional: {generators: {model.dropout: [model.norm, model.norm]}}}\n",
        8,
        "generators.model.dropout[1]: model.norm is there already",
    ),
    "generator_of_resolution_two": (
        FIVE + "design: {fractional: {generators: {model.dropout: [model.norm]}}}\n",
        8,
        "model.norm and model.dropout would only change together",
    ),
    "generators_of_resolution_two": (
        FIVE + "design:\n  fractional:\n    generators:\n      model.position: [model.norm, model.attention]\n"
        "      model.dropout: [model.norm, model.attention]\n",
        10,
        "design.fractional.generators: model.position and model.dropout would only change together",
    ),
    "optimal_without_cells": (GOOD + "design: {optimal: {}}\n", 4, "design.optimal.cells: is missing"),
    "optimal_misspelt": (
        FIVE + "design: {optimal: {cell: 12}}\n",
        8,
        "design.optimal.cell: unknown key 'cell'; did you mean 'cells'?",
    ),
    "optimal_with_too_few": (
        FIVE + "design: {optimal: {cells: 5}}\n",
        8,
        "design.optimal.cells: 5 cells cannot tell the main effects apart; 6 is the least, and more are better",
    ),
    "optimal_with_too_many": (
        FIVE + "design: {optimal: {cells: 33}}\n",
        8,
        "design.optimal.cells: must be a whole number from 1 to 32, not 33",
    ),
    "optimal_with_more_than_are_left": (
        FIVE + "exclude: [{model.norm: layernorm, model.dropout: 0.1}]\nbaseline: {model.norm: rmsnorm}\n"
        "design: {optimal: {cells: 30}}\n",
        10,
        "design.optimal.cells: must be up to 24, the cells that exclude leaves, not 30",
    ),
    "optimal_confounded_by_exclude": (
        FIVE + "exclude:\n- {model.norm: layernorm, model.dropout: 0.0}\n- {model.norm: rmsnorm, model.dropout: 0.1}\n"
        "design: {optimal: {cells: 12}}\n",
        11,
        "design.optimal: the cells that exclude leaves do not tell the main effects apart",
    ),
    "optimal_beyond_the_cap": (
        FIVE + "design: {optimal: {cells: 6, alias: 0.1}}\n",
        8,
        "with 6 cells, 0.8 of an interaction gets into a main effect, more than the 0.1 allowed: ask for more cells, "
        "or allow it with alias: 0.8",
    ),
    "optimal_alias_no_number": (FIVE + "design: {optimal: {cells: 12, alias: low}}\n", 8, "not 'low'"),
    "controls_empty": (GOOD + "controls: {}\n", 4, "controls: is empty; say aa: true, or what is known to be bad"),
    "controls_listed": (GOOD + "controls: [aa]\n", 4, "controls: must be a mapping, not a list"),
    "controls_misspelt": (GOOD + "controls:\n  aaa: true\n", 5, "controls.aaa: unknown key 'aaa'; did you mean 'aa'?"),
    "controls_no_seeds": (
        GOOD + "controls: {aa: 0}\n",
        4,
        "controls.aa: must be true, or a whole number from 1 to 1000, not 0",
    ),
    "bad_empty": (GOOD + "controls: {bad: {}}\n", 4, "controls.bad: is empty; say what makes the baseline worse"),
    "bad_unknown": (
        GOOD + "controls:\n  bad: {model.nrom: none}\n",
        5,
        "controls.bad.model.nrom: unknown key 'model.nrom'; did you mean 'model.norm'?",
    ),
    "bad_variant": (
        GOOD + "controls:\n  bad:\n    model.norm: nine\n",
        6,
        "controls.bad.model.norm: unknown norm 'nine'; did you mean 'none'?",
    ),
    "bad_impossible": (
        GOOD + "controls: {bad: {model.n_heads: 5}}\n",
        4,
        "controls.bad: model.n_heads: 5 heads do not divide a width of 64",
    ),
    "bad_as_good": (
        GOOD + "controls: {bad: {model.attention: mqa}}\n",
        4,
        "controls.bad: is the same recipe as the cell of model.attention mqa",
    ),
    "bad_changes_nothing": (
        GOOD + "controls: {bad: {optimizer.lr: x1}}\n",
        4,
        "controls.bad: is the same recipe as the cell of model.attention mha",
    ),
    "tune_list": (GOOD + "tune: [optimizer.lr]\n", 4, "tune: must be a mapping, not a list"),
    "tune_nothing": (GOOD + "tune: {}\n", 4, "tune: must be one field, such as {optimizer.lr: [x0.5, x1, x2]}, not 0"),
    "tune_two_fields": (
        GOOD + "tune: {optimizer.lr: [x1, x2, x4], optimizer.eps: [x1, x2, x4]}\n",
        4,
        "must be one field",
    ),
    "tune_unknown_field": (
        GOOD + "tune:\n  optimiser.lr: [x1, x2, x4]\n",
        5,
        "tune.optimiser.lr: unknown key 'optimiser.lr'; did you",
    ),
    "tune_a_factor": (
        GOOD + "tune: {model.attention: [x1, x2, x4]}\n",
        4,
        "tune.model.attention: is a factor of this suite",
    ),
    "tune_the_data": (
        GOOD + "tune: {data.seq_len: [64, 128, 256]}\n",
        4,
        "changes what is trained or evaluated on, so that losses",
    ),
    "tune_the_length": (GOOD + "tune: {train.tokens: [x1, x2, x4]}\n", 4, "tune.train.tokens: changes what is trained"),
    "tune_few": (
        GOOD + "tune: {optimizer.lr: [1.0e-3, 2.0e-3]}\n",
        4,
        "tune.optimizer.lr: must be from 3 to 100 values",
    ),
    "tune_few_of_them": (
        GOOD + "tune:\n  optimizer.lr:\n    values: [x1]\n",
        6,
        "tune.optimizer.lr.values: must be from 3",
    ),
    "tune_without_values": (GOOD + "tune:\n  optimizer.lr: {seeds: 2}\n", 5, "tune.optimizer.lr.values: is missing"),
    "tune_text": (
        GOOD + "tune: {optimizer.lr: [1.0e-3, fast, 1.0]}\n",
        4,
        "tune.optimizer.lr[1]: must be a positive number, or a mult",
    ),
    "tune_zero": (
        GOOD + "tune: {optimizer.weight_decay: [0, 0.1, 0.2]}\n",
        4,
        "weight_decay[0]: must be a positive number, or a",
    ),
    "tune_mixed": (
        GOOD + "tune: {optimizer.lr: [x1, x2, 1.0]}\n",
        4,
        "lr[2]: must be all numbers or all multiples; this one is not like",
    ),
    "tune_twice": (GOOD + "tune: {optimizer.lr: [x1, x2, x1.0]}\n", 4, "tune.optimizer.lr[2]: x1.0 is there already"),
    "tune_seeds": (
        GOOD + "tune: {optimizer.lr: {values: [x1, x2, x4], seeds: 0}}\n",
        4,
        "lr.seeds: must be a whole number from 1 to 1000",
    ),
    "tune_extend": (
        GOOD + "tune: {optimizer.lr: {values: [x1, x2, x4], extend: yes}}\n",
        4,
        "lr.extend: must be a whole number from 0",
    ),
    "tune_unknown_option": (
        GOOD + "tune:\n  optimizer.lr:\n    values: [x1, x2, x4]\n    extent: 3\n",
        7,
        "tune.optimizer.lr.extent: unknown key 'extent'; did you mean 'extend'?",
    ),
    "tune_impossible": (
        GOOD + "tune:\n  optimizer.beta1:\n  - 0.5\n  - 0.9\n  - 1.5\n",
        8,
        "tune.optimizer.beta1[2]: optimizer 'adamw': beta1: Input should be less than 1, not 1.5 (of mha)",
    ),
    "tune_what_some_have_not": (
        "name: x\nfactors: {optimizer: [sgd, adamw]}\ntune: {optimizer.momentum: [0.5, 0.7, 0.9]}\n",
        3,
        "tune.optimizer.momentum[0]: optimizer 'adamw' has no option 'momentum'",
    ),
    "tune_what_a_level_sets": (
        "name: x\nfactors:\n  optimizer:\n  - adamw\n  - lion: {lr: 1.0e-4}\ntune: {optimizer.lr: [1.0e-3, 1.0e-2, 1.0e-1]}\n",
        5,
        "factors.optimizer[1].lion.lr: is tuned for every cell; leave it out here, or tune by multiples of it, such as x0.5",
    ),
    "unknown_match": (
        GOOD + "match: flop\n",
        4,
        "match: unknown axis 'flop'; did you mean 'flops'?; known: tokens, none, parameters, flops, wall_clock",
    ),
    "match_list": (GOOD + "match: [tokens]\n", 4, "match: unknown axis a list"),
    "match_of_two": (GOOD + "match: {tokens: {}, flops: {}}\n", 4, "match: must be one axis, such as {parameters: "),
    "match_of_none": (GOOD + "match: {}\n", 4, "match: must be one axis"),
    "match_unknown_axis": (
        GOOD + "match:\n  params: {}\n",
        5,
        "match.params: unknown key 'params'; did you mean 'parameters'?",
    ),
    "match_unknown_option": (
        GOOD + "match:\n  flops:\n    tolerence: 0.1\n",
        6,
        "match.flops.tolerence: unknown key 'tolerence'; did you mean 'tolerance'?",
    ),
    "match_tolerance_without_bound": (
        GOOD + "match: {flops: {tolerance: 5}}\n",
        4,
        "match.flops.tolerance: must be a share between 0 and 1, not 5",
    ),
    "match_tolerance_text": (
        GOOD + "match: {flops: {tolerance: small}}\n",
        4,
        "must be a share between 0 and 1, not 'small'",
    ),
    "match_tolerance_alone": (GOOD + "match: {flops: 0.05}\n", 4, "match.flops: must be a mapping, not 0.05"),
    "baseline_outside": (
        GOOD + "baseline:\n  model.attention: gqa\n",
        5,
        "baseline.model.attention: gqa is not one of its levels; did you mean 'mqa'?",
    ),
    "baseline_of_no_factor": (
        GOOD + "baseline: {optimizer: adamw}\n",
        4,
        "baseline.optimizer: unknown key 'optimizer'",
    ),
    "baseline_not_a_mapping": (GOOD + "baseline: mha\n", 4, "baseline: must be a mapping, not 'mha'"),
    "exclude_everything": (GOOD + "exclude: [{model.attention: [mha, mqa]}]\n", 4, "exclude: leaves no cell"),
    "exclude_the_baseline": (GOOD + "exclude: [{model.attention: mha}]\n", 4, "exclude: takes out the baseline (mha)"),
    "exclude_a_level": (
        GOOD + "exclude: [{model.attention: mqa}]\n",
        3,
        "factors.model.attention[1]: level mqa is in no cell",
    ),
    "exclude_unknown": (
        GOOD + "exclude: [{model.attention: gqa}]\n",
        4,
        "exclude[0].model.attention: gqa is not one of its levels",
    ),
    "exclude_unknown_factor": (GOOD + "exclude:\n- {optimizer: lion}\n", 5, "exclude[0].optimizer: unknown key"),
    "exclude_nothing": (GOOD + "exclude: [{}]\n", 4, "exclude[0]: is empty, which would exclude every cell"),
    "exclude_not_a_list": (GOOD + "exclude: {model.attention: mqa}\n", 4, "exclude: must be a list, not a mapping"),
    "no_seeds": (GOOD + "seeds: 0\n", 4, "seeds: must be from 1 to 1000 of them, not 0"),
    "negative_seeds": (GOOD + "seeds: -3\n", 4, "not -3"),
    "negative_seed": (GOOD + "seeds:\n- 1\n- -1\n", 6, "seeds[1]: must be a whole number from 0 to 2147483647, not -1"),
    "duplicate_seeds": (GOOD + "seeds: [1, 2, 1]\n", 4, "seeds[2]: seed 1 is there already"),
    "empty_seeds": (GOOD + "seeds: []\n", 4, "seeds: must be from 1 to 1000 of them, not 0"),
    "too_many_seeds": (GOOD + "seeds: 1000000000000\n", 4, "seeds: must be from 1 to 1000 of them"),
    "null_seeds": (GOOD + "seeds:\n", 4, "seeds: must be how many, or a list of them, not null"),
    "bool_seeds": (GOOD + "seeds: true\n", 4, "seeds: must be how many, or a list of them, not true"),
    "textual_seeds": (GOOD + "seeds: five\n", 4, "not 'five'"),
    "half_a_seed": (GOOD + "seeds: 2.5\n", 4, "not 2.5"),
    "negative_margin": (GOOD + "margin: -0.1\n", 4, "margin: must be a positive number of nats, not -0.1"),
    "zero_margin": (GOOD + "margin: 0\n", 4, "margin: must be a positive number of nats, not 0"),
    "textual_margin": (GOOD + "margin: small\n", 4, "margin: must be a positive number of nats, not 'small'"),
    "contrast_of_no_factor": (
        GOOD + "contrasts: [{factor: optimizer, level: a, against: b}]\n",
        4,
        "contrasts[0].factor: 'optimizer' is not a factor",
    ),
    "contrast_with_itself": (
        GOOD + "contrasts: [{factor: model.attention, level: mha, against: mha}]\n",
        4,
        "contrasts[0]: sets mha against itself",
    ),
    "contrast_incomplete": (
        GOOD + "contrasts:\n- {factor: model.attention, level: mqa}\n",
        5,
        "contrasts[0].against: is missing",
    ),
    "python_tag": (GOOD + "description: !!python/object/apply:os.system [touch owned]\n", 4, "description: tags ("),
    "standard_tag": (GOOD + "seeds: !!int '3'\n", 4, "seeds: tags ("),
    "local_tag": (GOOD + "description: !thing x\n", 4, "description: tags (!thing) are not allowed"),
    "anchor": ("name: &n x\n" + TAIL, 1, "name: anchors (&n) are not allowed"),
    "alias": (GOOD + "description: *n\n", 4, "aliases (*n) are not allowed"),
    "merge_key": (GOOD + "base:\n  <<: {model.dim: 32}\n", 5, "merge keys (<<) are not allowed"),
    "billion_laughs": (BOMB, 1, "anchors (&a) are not allowed"),
    "two_documents": (GOOD + "---\n" + GOOD, 4, "a second document starts"),
    "directive": ("%YAML 1.1\n---\n" + GOOD, 1, "YAML directives are not allowed"),
    "list_as_key": (GOOD + "? [a]\n: b\n", 4, "a key must be a word"),
    "missing_key": (GOOD + ": b\n", 4, "a key is missing"),
    "tabs": ("name: x\nfactors:\n\tmodel.attention: [mha, mqa]\n", 3, "indent with blanks, not with tabs"),
    "unclosed": ("name: x\nfactors: {model.attention: [mha, mqa]\n", 3, "not YAML: "),
    "bad_indentation": ("name: x\n factors:\n", 2, "not YAML: "),
    "too_deep": (GOOD + "base: " + "{a: " * 40 + "}" * 40 + "\n", 4, "nested more than 16 deep"),
    "very_deep": (b"[" * 60_000, 1, "nested more than 16 deep"),
    "too_large": (b"# " + b"x" * 2_000_000, None, "is larger than 65536 bytes"),
    "latin_1": ("name: x\ndescription: caf\xe9\n".encode("latin-1"), 2, "byte 0xe9 is not UTF-8"),
    "utf_16": (GOOD.encode("utf-16"), 1, "byte 0xff is not UTF-8"),
    "random_bytes": (bytes((i * 97 + 31) % 256 for i in range(500)), 1, "is not UTF-8"),
    "zip": (b"PK\x03\x04\x14\x00\x00\x00\x08\x00", None, "not YAML"),
}


def load(path: str) -> str:
    """The line that the loader refuses with."""
    with pytest.raises(UserError) as caught:
        suite.load_suite(path)
    return str(caught.value)


def command(name: str, path: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The line that a command refuses with, without its `error: `."""
    from ablate.cli import main

    assert main([name, path]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.endswith("\n")
    return err.removeprefix("error: ").removesuffix("\n")


@pytest.mark.timeout(60)  # what grows without end when it is read ends here
@pytest.mark.parametrize("reader", ["load_suite", "plan", "run"])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_suite_is_refused_in_one_line_and_leaves_nothing(
    name: str,
    reader: str,
    tmp_path: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content, line, fragment = WRONG[name]
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    message = load("x.yaml") if reader == "load_suite" else command(reader, "x.yaml", capsys)
    place = "x.yaml: " if line is None else f"x.yaml:{line}: "
    assert message.startswith(place) and fragment in message
    assert message.isprintable() and len(message) < 1000
    assert [path.name for path in tmp_path.iterdir()] == ["x.yaml"] and not home.exists()


def test_there_are_thirty_of_them() -> None:
    assert len(WRONG) >= 30


def test_a_good_one_is_taken(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(GOOD)
    assert suite.load_suite(tmp_path / "x.yaml").name == "x"
