"""What the commands say to a person: facts in, lines out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_export.conversion import Converted
    from llama_export.engine.options import EngineOptions, Limits
    from llama_export.engine_export import EngineExported, EnginePlan
    from llama_export.parity import Report
    from llama_export.pipeline import Exported
    from llama_export.plan import ExportPlan
    from llama_export.recipe import Recipe


def size(nbytes: int) -> str:
    """Bytes in the unit that a person would choose."""
    for unit in ("bytes", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "bytes" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024  # type: ignore[assignment]
    return f"{nbytes:.2f} GiB"


def count(number: int, noun: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _pasted(path: Path | str) -> str:
    """A path as it may be pasted into a shell."""
    return shlex.quote(str(path))


def plan_lines(plan: ExportPlan) -> list[str]:
    """The plan of ``--dry-run``."""
    recipe = plan.recipe
    return [
        f"export    {plan.checkpoint} -> {plan.output}",
        f"choices   attention {recipe.attention}, weights {plan.weights}, "
        f"precision {recipe.precision or 'as in the checkpoint'}, verify {'yes' if recipe.verify else 'no'}",
        *([f"also      {', '.join(extras)}"] if (extras := _extras(recipe)) else []),
        *(f"file      {name}  {size(nbytes)}" for name, nbytes in plan.files.items()),
        f"disk      {size(plan.written_bytes)} of new data",
        f"memory    about {size(plan.peak_memory_bytes)} of private memory while exporting",
        f"time      about {plan.seconds:.0f} s"
        + (", verification about as long again" if recipe.verify else ""),
        f"running   {plan.run_time_note}",
        *(f"note      {note}" for note in plan.notes),
    ]


def _extras(recipe: Recipe) -> list[str]:
    """What a language model's graph gives and takes besides the default."""
    gives = {None: [], "last": ["gives its last hidden states"], "all": ["gives all hidden states"]}
    weights = ["gives its attention weights"] * recipe.attentions
    return [
        *gives[recipe.hidden_states],
        *weights,
        *["takes embeddings in place of ids, which a second graph looks up"] * recipe.inputs_embeds,
    ]


def report_lines(report: Report) -> list[str]:
    """One line a rung, what is to blame, and the verdict."""
    lines = []
    for rung in report.rungs:
        if rung.measured is None and not rung.needed:
            lines.append(f"-   {rung.name:20} {rung.detail}")
            continue
        measured = "not measured" if rung.measured is None else f"{rung.measured:.2g}"
        mark = "-" if rung.measured is None else "ok" if rung.passed else "RED"
        lines.append(f"{mark:4}{rung.name:20} {measured:>12}, allowed {rung.tolerance:g}  {rung.detail}")
    lines += [f"note: {note}" for note in report.notes]
    same = "equal to the reference" if report.reference else "as at export"
    verdict = same if report.passed else f"differs: {report.first_failure()}"
    tokens = f"{report.tokens_compared} greedy tokens in " if report.tokens_compared else ""
    lines.append(f"{verdict}; {tokens}{report.seconds:.1f} s")
    return lines if report.blame is None else [*lines, f"blame: {report.blame.sentence}"]


def exported_lines(exported: Exported) -> list[str]:
    """What was made, what it proves and what to do next."""
    manifest, report = exported.manifest, exported.report
    weights = exported.placed_as if manifest.weights != "copy" else "written anew"
    total = sum(entry.size_bytes for entry in manifest.files)
    lines = [
        f"bundle    {exported.output}: {size(total)}, {manifest.attention} attention, "
        f"{manifest.precision} weights ({weights}), {exported.seconds:.1f} s"
    ]
    if report is None:
        lines.append("parity    not verified")
    else:
        computed = [rung for rung in report.rungs if "of the reference's largest" in rung.unit]
        worst = max(rung.measured or 0.0 for rung in computed)
        proven = (
            f"outputs within {worst:.1e} of the largest"
            if not report.tokens_compared
            else f"logits within {worst:.1e} of the largest, {report.tokens_compared} greedy tokens the same"
        )
        lines.append(f"parity    equal to eager PyTorch: {proven}")
        lines += _cost_lines(report)
    command = f"next      llama-export {_COMMANDS[manifest.task].format(_pasted(exported.output))}"
    if manifest.cache is not None and manifest.cache.dtype == "float16":
        lines.append(f"{command} --device cuda")
    else:
        lines += [command, _other_choice(manifest.precision, manifest.weights)]
    return [*lines, *(f"note      {note}" for note in exported.notes)]


_COSTS = {
    "KL divergence": "KL divergence {:.2g}",
    "top-1 agreement": "{:.1%} of the likeliest others",
    "perplexity": "perplexity {:.2%} off",
    "embeddings": "1 less the cosine of embeddings {:.2g}",
}


def _cost_lines(report: Report) -> list[str]:
    """What rounding the weights cost; nothing where they are the checkpoint's."""
    found = {rung.name: rung.measured for rung in report.rungs}
    said = [text.format(found[name]) for name, text in _COSTS.items() if found.get(name) is not None]
    return [f"rounding  against the checkpoint's own weights: {', '.join(said)}"] if said else []


def engine_plan_lines(plan: EnginePlan) -> list[str]:
    """What a build will do."""
    lines = [
        f"source    {plan.source}",
        f"output    {plan.output}",
        f"weights   {size(plan.weight_bytes)}, {_precision(plan.options)}",
        *(f"note      {note}" for note in plan.notes),
        f"limits    {_limits(plan.limits)}",
    ]
    if plan.limits.buckets:
        lines.append(f"cache     {size(plan.cache_bytes)} on the GPU for {_rows(plan.limits.max_batch)}")
    if plan.builder is None:
        return [*lines, "builder   none: the graph alone is written"]
    return [
        *lines,
        f"builder   {plan.builder}, for compute capability {', '.join(plan.compute_capabilities)}",
        f"memory    about {size(plan.build_memory_bytes)} while it builds",
    ]


def engine_lines(exported: EngineExported) -> list[str]:
    """What was built, and what to do next."""
    engine, built = exported.added.engine, exported.added.built
    entry = engine.plan or engine.onnx
    lines = [
        f"engine    {exported.output / entry.path}: {size(entry.size_bytes)}, "
        f"{_precision(exported.plan.options)}, {exported.seconds:.1f} s",
        *(f"note      {note}" for note in exported.plan.notes),
        f"limits    {_limits(exported.plan.limits)}",
    ]
    if built is None:
        return [*lines, "next      the graph is not built: llama-export trt without --onnx-only"]
    lines.append(
        f"built     in {built.seconds:.1f} s by {exported.plan.builder}, "
        f"for compute capability {', '.join(engine.compute_capabilities)}"
    )
    if not built.fused:
        lines.append(
            "note      no fused kernel takes this shape and precision: attention is slower, not wrong"
        )
    command = _COMMANDS[engine.task].format(_pasted(exported.output))
    return [*lines, f"next      llama-export {command} --device tensorrt"]


def _precision(options: EngineOptions) -> str:
    return f"{options.precision}, computed in {options.computes_in}" if options.kind else options.precision


def _limits(limits: Limits) -> str:
    buckets = f"buckets {', '.join(map(str, limits.buckets))}, " if limits.buckets else ""
    return f"{limits.max_seq} tokens, {buckets}chunks of {limits.prefill_chunk}, {_rows(limits.max_batch)}"


def _rows(number: int) -> str:
    return count(number, "row")


def converted_lines(converted: Converted) -> list[str]:
    """What was written and what to do next."""
    total = size(sum(converted.files.values()))
    return [
        f"written   {converted.output}: {converted.tensors} tensors, {total}, {converted.seconds:.1f} s",
        *(f"note      {note}" for note in converted.notes),
        f"next      llama-export onnx {_pasted(converted.output)}",
    ]


_COMMANDS = {
    "text-generation": 'run {} "your prompt"',
    "feature-extraction": 'embed {} "your text"',
    "text-classification": 'classify {} "your text"',
    "token-classification": 'tag {} "your text"',
    "question-answering": 'answer {} "your question" "your text"',
}


def _other_choice(precision: str, weights: str) -> str:
    """How to get a smaller or faster bundle than this one."""
    if precision in ("int8", "int4"):
        return "faster    --block-size 128, where what rounding costs allows it; closer: --precision int8"
    if precision != "float32":
        return (
            "faster    starts at once, without our kernels: "
            "--weights copy --precision float32 (twice the disk)"
        )
    if weights == "copy":
        return "smaller   half the disk: --weights copy --precision bfloat16 (or float16)"
    return "smaller   half the disk, rounded: --weights copy --precision float16 (or bfloat16)"


def checkpoint_lines(facts: dict[str, Any]) -> list[str]:
    """What ``inspect`` says of a checkpoint."""
    if not facts["supported"]:
        lines = [f"checkpoint  {facts['folder']}", f"supported   no: {facts['reason']}"]
        return [*lines, f"hint        {facts['hint']}"] if facts["hint"] else lines
    config = facts["config"]
    rope = config["rope"]
    return [
        f"checkpoint  {facts['folder']}",
        f"model       {facts['parameters'] / 1e6:,.1f} M parameters, {facts['precision']}, "
        f"{len(facts['tensors'])} tensors in {count(len(facts['weight_files']), 'file')}, "
        f"{size(sum(facts['weight_files'].values()))}",
        f"shape       {config['num_hidden_layers']} layers, hidden {config['hidden_size']}, "
        f"{config['num_attention_heads']} heads over {config['num_key_value_heads']} kv heads "
        f"of {config['head_dim']}, "
        f"mlp {config['intermediate_size']}, vocabulary {config['vocab_size']}, "
        f"{'tied' if config['tie_word_embeddings'] else 'untied'} head",
        f"positions   {config['max_position_embeddings']}, rope {rope['rope_type']}, "
        f"theta {rope['rope_theta']:g}",
        f"files       {', '.join(facts['companions']) or 'no tokenizer, no licence'}",
        *(f"note        {note}" for note in facts["notes"]),
        f"supported   yes: llama-export onnx {_pasted(facts['folder'])}",
    ]


def bundle_lines(facts: dict[str, Any]) -> list[str]:
    """What ``inspect`` says of a bundle."""
    parity = facts["parity"]
    verdict = "not verified" if parity is None else "verified" if parity["passed"] else "differs"
    graph, cache = facts["graph"], facts["cache"]
    return [
        f"bundle      {facts['folder']} (format {facts['format_version']}, {facts['task']})",
        f"graph       {graph['path']}, opset {graph['opset']}, {facts['attention']} attention, "
        f"cache {'none' if cache is None else 'in place' if cache['in_place'] else 'growing'}",
        *([f"labels      {', '.join(facts['classification']['labels'])}"] if facts["classification"] else []),
        f"weights     {facts['precision']}, {facts['weights']}",
        f"limits      {facts['limits']['max_position_embeddings']} positions, "
        f"vocabulary {facts['limits']['vocab_size']}, tokenizer {facts['tokenizer'] or 'none'}",
        *([f"engines     {', '.join(facts['engines'])}"] if facts["engines"] else []),
        *(f"file        {path}  {size(nbytes)}" for path, nbytes in facts["files"].items()),
        f"parity      {verdict}, {facts['known_answers'] + facts['known_outputs']} known answers",
    ]
