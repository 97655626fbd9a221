"""The model card of a student: YAML front matter as the hub's own classes write it, and a page for people.

Front matter: https://huggingface.co/docs/hub/model-cards; results lie in `model-index`, written by
`huggingface_hub.EvalResult`. Figures on the embedded benchmark are named as such in both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from madkit.core.console import counted
from madkit.share.facts import teacher_licence, teachers_of
from madkit.share.names import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madkit.share.facts import Facts
    from madkit.share.scores import Score

LIBRARY = "madkit"
# The hub's names for what a student does, where it has one.
PIPELINES = {"vqa": "visual-question-answering"}
TASK_TYPES = {"vqa": "visual-question-answering", "multiple-choice": "multiple-choice", "classification": "other"}
OUTPUTS = {
    "multiple-choice": "one score for each candidate of a question",
    "classification": "one score for each of the classes {names}",
    "vqa": "one score for each of {count:,} answers",
}
# Publications behind what a card may name, with the authors and titles of their own pages.
METHOD = """\
@misc{wang2022multimodal,
  title = {Multimodal Adaptive Distillation for Leveraging Unimodal Encoders for Vision-Language Tasks},
  author = {Wang, Zhecan and Codella, Noel and Chen, Yen-Chun and Zhou, Luowei and Dai, Xiyang and Xiao, Bin and
            Yang, Jianwei and You, Haoxuan and Chang, Kai-Wei and Chang, Shih-Fu and Yuan, Lu},
  year = {2022}, eprint = {2204.10496}, archivePrefix = {arXiv}
}"""
SOFTWARE = """\
@software{{madkit,
  title = {{madkit: Multimodal Adaptive Distillation for vision-language students}},
  author = {{The madkit authors}}, version = {{{version}}}
}}"""


def card_text(facts: Facts) -> str:
    """The whole README.md of a student's folder."""
    from huggingface_hub import ModelCard

    return str(ModelCard(f"---\n{front_matter(facts).to_yaml()}\n---\n\n{page(facts)}"))


def front_matter(facts: Facts) -> Any:
    """`huggingface_hub.ModelCardData` of a student."""
    from huggingface_hub import EvalResult, ModelCardData

    run, spec = facts.run, facts.spec
    mini = ["embedded-benchmark"] if run.is_mini else []
    taught = ["knowledge-distillation"] if facts.teacher else []
    name = f"{spec.title} (madkit's embedded benchmark {run.source})" if run.is_mini else spec.title
    results = [
        EvalResult(
            task_type=TASK_TYPES[spec.kind],
            task_name=spec.title,
            dataset_type=run.source,
            dataset_name=name,
            dataset_split=score.suite,
            dataset_revision=run.revision,
            metric_type="accuracy",
            metric_name=_metric(score, facts.scores),
            metric_value=round(score.percent, 2),
        )
        for score in facts.scores
    ]
    return ModelCardData(
        language="en",
        library_name=LIBRARY,
        license=facts.licence,
        base_model=facts.started_from,
        pipeline_tag=PIPELINES.get(spec.kind),
        tags=[LIBRARY, "vision-language", facts.family.name, run.task, *taught, *mini],
        datasets=[run.source],
        metrics=["accuracy"],
        model_name=_name(facts) if results else None,
        eval_results=results or None,
    )


def page(facts: Facts) -> str:
    """The card below its front matter, as Markdown."""
    run = facts.run
    parts = [f"# {_cell(_name(facts))}", _opening(facts)]
    if run.is_mini:
        parts.append(
            f"> **Embedded benchmark.** {run.source} is madkit's own small world of pictographs, drawn by program. "
            f"Figures on it show a method at work; they are not results on {facts.spec.title} and must not be "
            "quoted as such."
        )
    parts += ["## Results", *_results(facts), "## Use", _use(facts), "## Limits", _limits(facts)]
    parts += ["## Data", _data(facts)]
    parts += ["## Teacher", _teacher(facts), "## Training", _training(facts)]
    parts += ["## Licence", _licence(facts), "## Citation", _citation(facts)]
    return "\n\n".join(parts) + "\n"


def _name(facts: Facts) -> str:
    run = facts.run
    return f"{facts.student}, {run.arm}, {run.source}, {run.shots}, seed {run.seed}"


def _opening(facts: Facts) -> str:
    outputs = OUTPUTS[facts.head.kind].format(names=", ".join(facts.head.outputs), count=len(facts.head.outputs))
    seen = {
        "regions": f"region features of {facts.region_dim} values with their boxes",
        "pixels": "image files",
        "teacher": f"its teacher's image tokens of {facts.region_dim} values",
    }[facts.family.visual]
    return (
        f"A vision-language student for {_cell(facts.spec.title)}: {facts.family.title} "
        f"([paper]({facts.family.paper})), {facts.parameters / 1e6:,.1f} million parameters. It reads texts and "
        f"{seen}, and gives {_cell(outputs)}. Trained with madkit's arm `{_cell(facts.run.arm)}`{_described(facts)}."
    )


def _described(facts: Facts) -> str:
    text = str(facts.manifest["config"].get("description") or "")
    return f" ({_cell(text)})" if text else ""


def _results(facts: Facts) -> list[str]:
    if not facts.scores:
        return ["This run had not been evaluated when the card was written."]
    over_seeds = any(score.mean is not None for score in facts.scores)
    head = ["suite", "metric", f"seed {facts.run.seed}", "examples"] + (["mean over seeds", "95 %"] * over_seeds)
    lines = [f"| {' | '.join(head)} |", "|---|---|--:|--:|" + "--:|:-:|" * over_seeds]
    rows = [_row(score, _metric(score, facts.scores), over_seeds) for score in facts.scores]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    said = [
        "Per cent." + (f" Chance is {facts.spec.chance:.1f} % of {facts.spec.metric}." if facts.spec.chance else "")
    ]
    if over_seeds:
        said.append(
            "The interval is Student's t over the seeds, of runs that differ in their seed alone; this folder holds "
            f"the student of seed {facts.run.seed}."
        )
    else:
        said.append("One seed, no interval.")
    rules = sorted({score.vqa_rule for score in facts.scores if score.vqa_rule})
    if rules:
        said.append(f"VQA's official accuracy, rule {' and '.join(rules)}.")
    return ["\n".join(lines), " ".join(said)]


def _metric(score: Score, scores: Sequence[Score]) -> str:
    """The metric's name, with the rule of VQA's accuracy where the card holds scores by more than one."""
    several = len({one.vqa_rule for one in scores}) > 1
    return f"{score.metric}, rule {score.vqa_rule}" if several and score.vqa_rule else score.metric


def _row(score: Score, metric: str, over_seeds: bool) -> list[str]:
    suite = "test (in-domain)" if score.suite == "test" else score.suite
    row = [_cell(suite), _cell(metric), f"{score.percent:.2f}", f"{score.n_examples:,}"]
    if not over_seeds:
        return row
    if score.mean is None:
        return [*row, "", "n=1, no interval"]
    return [*row, f"{score.mean:.2f} (n={len(score.seeds)})", f"[{score.low:.2f}, {score.high:.2f}]"]


def _use(facts: Facts) -> str:
    visual = facts.family.visual
    pixels = visual == "regions" and facts.run.is_mini and not facts.manifest.get("regions")
    file = "pixels" if pixels else {"regions": "features.tsv", "teacher": "CACHE_FOLDER"}.get(visual, "")
    seen = {
        "regions": f"`features.tsv` stands for a file or folder with region features of {facts.region_dim} values, of "
        "the detector that it was trained with, in any layout of `madkit data regions formats`.",
        "pixels": "It reads the image files and nothing else.",
        "teacher": "`CACHE_FOLDER` stands for a token cache of the same teacher over these images: `madkit data import "
        "custom`, then `madkit extract`.",
    }[visual]
    if pixels:
        seen = "`pixels` stands for small pictures of the boxes (of a grid where there are none), its region features."
    argument = f', regions="{file}"' if file else ""
    option = f" --regions {file}" if file else ""
    return f"""\
With this folder at `DIR`, or `ORG/NAME` in its place, by which it is fetched from the hub:

```python
from madkit import load_student, predict

student = load_student("DIR")  # a torch.nn.Module in eval mode; student(inputs).logits
told = predict(student, "questions.jsonl", images="photos"{argument})
told.rows[0]  # {{"id": ..., "prediction": ..., "probability": ..., "scores": ...}}
```

and as a program, on a JSONL file of your own, or on data of the same kind that was imported into a workspace:

```
madkit predict DIR questions.jsonl --images photos{option}
madkit predict DIR --task {facts.run.task} --split test -o answers.jsonl
```

A line of `questions.jsonl` is `{_line(facts)}`. {seen} Weights are safetensors; nothing in this folder is run as
code."""


def _line(facts: Facts) -> str:
    """A question as a user writes it, without a label."""
    more = {"multiple-choice": ', "choices": ["...", "..."]'}.get(facts.head.kind, "")
    return f'{{"image": "a.jpg", "text": "..."{more}}}'


def _limits(facts: Facts) -> str:
    chosen = {
        "multiple-choice": "It ranks the choices that it is given; that one of them is right is taken for granted.",
        "classification": "Its answer is one of its classes, whatever it is shown.",
        "vqa": f"Its answer is one of {len(facts.head.outputs):,} that its training data has, whatever it is asked.",
    }[facts.head.kind]
    suites = "the test suites above" if facts.scores else "nothing yet"
    return (
        f"{chosen} Probabilities are softmax values and have not been calibrated. It was trained on the labels below "
        f"and measured on {suites}; how it does on other images, texts or languages is not known."
    )


def _data(facts: Facts) -> str:
    manifest, run = facts.manifest, facts.run
    questions, examples = manifest.get("questions_labelled"), manifest.get("examples_labelled")
    labels = run.shots
    if questions is not None:
        labels += f": {counted(int(questions), 'questions')}, {counted(int(examples or 0), 'examples')}"
    rows = [
        ("source", run.source),
        ("revision", run.revision),
        ("labels", labels),
        ("labelled subset", f"digest {manifest.get('examples', '')}"),
        ("terms", facts.data_terms),
    ]
    if manifest.get("regions"):
        rows.insert(2, ("region features", f"added, digest {manifest['regions']}"))
    return _table(rows)


def _teacher(facts: Facts) -> str:
    manifest = facts.manifest
    if facts.teacher is None:
        return "None: this student learnt from labels alone."
    untaught = int(manifest.get("examples_without_teacher", 0))
    rows: list[tuple[str, str]] = []
    teachers = teachers_of(manifest)
    for name, base in teachers:
        rows += [("name", name), *([("adapted from", base)] if base != name else [])]
        rows.append(("licence of its weights", teacher_licence(base) or UNKNOWN))
    rows.append(("token cache", str(manifest.get("cache_key"))))
    if untaught:
        rows.append(("examples without it", f"{untaught:,}"))
    one = len(teachers) == 1
    whom, them = ("its teacher", "it") if one else ("its teachers", "them")
    if facts.family.visual == "teacher":
        said = f"The student sees with {whom}: every image that it answers about has to be read by {them} first."
    else:
        said = f"The student learnt from {whom} and does not need {them} to answer."
    return f"{_table(rows)}\n\n{said}"


def _training(facts: Facts) -> str:
    manifest = facts.manifest
    config = manifest["config"]
    optim = config.get("optim") or {}
    mad = config.get("mad") or {}
    budget = optim.get("token_budget")
    rows: list[tuple[str, str]] = [
        ("arm", facts.run.arm),
        ("first weights", facts.started_from or f"{facts.student} (digest {manifest.get('student_digest')})"),
        ("steps", f"{manifest.get('steps', '?')} (weights of step {manifest.get('kept_step', '?')})"),
        ("learning rate", f"{optim.get('learning_rate')}, {optim.get('schedule')}, warm-up {optim.get('warmup')}"),
        ("optimiser", f"{optim.get('optimizer')}, weight decay {optim.get('weight_decay')}"),
        ("batch", f"{budget:,} tokens" if budget else f"{optim.get('batch_size')} examples"),
        ("precision", str(config.get("precision"))),
        ("seed", str(facts.run.seed)),
    ]
    if mad:
        chosen = f"{mad.get('tokens')} tokens, {mad.get('weighting')} confidence, {mad.get('distance')} distance"
        rows.append(("distillation", f"{chosen}, weight {mad.get('weight')}, affinity {mad.get('affinity_weight')}"))
    if config.get("pre_phase"):
        rows.append(("pre-phase", f"{config['pre_phase'].get('steps')} steps on the unlabelled pool"))
    if manifest.get("seconds") is not None:
        processes = int(manifest.get("processes") or 1)
        where = f"{processes} process{'es' * (processes > 1)} on {manifest.get('device')}"
        rows.append(("time", f"{manifest['seconds']:,.0f} s, {where}"))
    versions = manifest.get("environment") or {}
    told = ", ".join(f"{name} {versions[name]}" for name in ("madkit", "torch", "transformers") if versions.get(name))
    rows.append(("versions", told))
    return f"{_table(rows)}\n\nEvery setting, and the digests of data and cache, are in `manifest.json`."


def _licence(facts: Facts) -> str:
    said = "Whoever exported it named none." if facts.licence == UNKNOWN else f"`{_cell(facts.licence)}`."
    others = "the teacher and the first weights" if facts.teacher else "and the first weights"
    data = _cell(facts.data_terms)
    return f"{said} What a student learnt from has terms of its own: the data ({data}), {others} (above)."


def _citation(facts: Facts) -> str:
    version = (facts.manifest.get("environment") or {}).get("madkit", "")
    return f"```bibtex\n{METHOD}\n\n{SOFTWARE.format(version=version)}\n```"


def _table(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows)])


def _cell(text: object) -> str:
    """Data as text: no column, tag, link or emphasis of a table or line begins in it."""
    plain = " ".join(str(text).split())
    for mark in "\\|<[]*`":
        plain = plain.replace(mark, {"<": "&lt;"}.get(mark, f"\\{mark}"))
    return plain
