"""Fine-tuning recipes of the students' papers: shipped YAML files that lie below an arm's own settings.

A recipe says how long, how fast and in what batches; an arm says what is learnt from whom. `--recipe paper` takes the
one of the student and the task. Token budgets are those of all GPUs and accumulations of the original together, so a
step sees what it saw there, however many devices share it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from madkit.core.config import StrictModel, load_config
from madkit.core.errors import NotFoundError, UsageProblem
from madkit.core.registry import suggest

FOLDER = Path(__file__).parent / "recipes"
PAPER = "paper"
_LOSSES = ("choice_loss", "choice_mean", "class_loss", "adversarial")
SEE = "madkit config list"


class Batch(StrictModel):
    """What a step of the original holds. The one that the original does not state follows from usual lengths:

    492 tokens for a VCR question (four candidates of 80 text tokens, 43 regions each), 56 for SNLI-VE, 48 for VQA.
    """

    samples: int = Field(gt=0, description="questions, or pairs of image and text")
    tokens: int = Field(gt=0, description="text tokens and regions, about")


class Recipe(StrictModel):
    """One paper's settings for one student and task. `settings` of `DistillConfig` by name, checked when merged."""

    recipe: str = Field(description="its name")
    student: str = Field(description="whose it is")
    task: str = Field(description="kind of task")
    source: str = Field(description="where it was read")
    published: str = Field(description="the batch as its authors state it")
    note: str = Field("", description="what the settings below do not hold")
    batch: Batch
    optim: dict[str, Any] = Field(description="keys of an arm's `optim`")
    choice_loss: str | None = Field(None, description="an arm's `choice_loss`")
    choice_mean: bool | None = Field(None, description="an arm's `choice_mean`")
    class_loss: str | None = Field(None, description="an arm's `class_loss`")
    adversarial: dict[str, Any] | None = Field(None, description="keys of an arm's `adversarial`")

    @property
    def settings(self) -> dict[str, Any]:
        """What lies below an arm."""
        extra = {name: getattr(self, name) for name in _LOSSES}
        return {"optim": dict(self.optim), **{name: value for name, value in extra.items() if value is not None}}


def recipe_rows(student: str) -> list[dict[str, Any]]:
    """What the shipped recipes of a registered student say, a row for each task, for people to read."""
    found = (load_config(Recipe, FOLDER / f"{name}.yaml", {}) for name in recipe_names())
    return [_row(recipe) for recipe in found if recipe.student == student]


def _row(recipe: Recipe) -> dict[str, Any]:
    optim = recipe.optim
    length = f"{optim['steps']:,} steps" if "steps" in optim else f"{optim['epochs']} epochs"
    notes = [recipe.note]
    if optim.get("optimizer") == "sgd":
        notes.append("SGD by steps")
    if optim.get("head_rate", 1) != 1:
        notes.append(f"head rate x {optim['head_rate']:g}")
    if recipe.adversarial:
        notes.append(f"adversarial: {recipe.adversarial['modality']}, rate {recipe.adversarial['rate_text']:g}")
    return {
        "recipe": recipe.recipe,
        "task": recipe.task,
        "learning_rate": optim["learning_rate"],
        "batch": recipe.published,
        "length": length,
        "warmup": f"{optim['warmup_steps']:,} steps" if "warmup_steps" in optim else f"{optim['warmup']:g}",
        "loss": recipe.choice_loss or recipe.class_loss or optim.get("vqa_loss") or "softmax",
        "note": "; ".join(note for note in notes if note),
    }


def recipe_names() -> list[str]:
    """The shipped recipes, named student-task."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(name: str, *, student: str = "", task: str = "") -> Recipe:
    """Read a recipe: a shipped name, the path of a YAML file, or "paper" for that of a student and a task.

    Args:
        name: which.
        student: registered name ("uniter-base"), for "paper".
        task: kind of task ("vcr"), for "paper".

    Raises:
        UsageProblem: no such recipe; the message suggests the nearest.
        NotFoundError: no such file.
        ConfigError: unknown or wrong keys.
    """
    if name == PAPER:
        wanted = f"{student}-{task}"
        if wanted not in recipe_names():
            own = [found for found in recipe_names() if found.startswith(f"{student}-")]
            family = student.removeprefix("mini-").removesuffix("-base").removesuffix("-large")
            alike = [f"{family}-{size}-{task}" for size in ("base", "large")] if student and not own else []
            there = [found for found in alike if found in recipe_names()]
            kin = f" For its family there is --recipe {' or '.join(there)}." if there else ""
            raise UsageProblem(
                f"No paper gives a recipe for {student or 'this student'} on {task}.{kin}",
                hint=f"leave out --recipe, or take one of another task or size: {', '.join(own)}"
                if own
                else f"leave out --recipe, or see what there is: {SEE}",
            )
        name = wanted
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise NotFoundError(f"There is no recipe {path}.")
    elif name in recipe_names():
        path = FOLDER / f"{name}.yaml"
    else:
        raise UsageProblem(
            f"There is no recipe '{name}'.{suggest(name, [*recipe_names(), PAPER])}",
            hint=f"--recipe {PAPER}, the path of a YAML file, or one of: {SEE}",
        )
    return load_config(Recipe, path, {})
