"""Import of VQA-CP v2: VQA v2's questions split anew, so that each question type's answers differ from train to test.

There is no official development split; one is cut from train by image, so that nothing is chosen on the shifted test
questions. Both splits are about images of train2014 and val2014, which `coco_split` tells apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from madkit.core.errors import NotFoundError
from madkit.tasks.example import Example
from madkit.tasks.formats.vqa import iter_vqa
from madkit.tasks.importing.coco_images import common_folder, first_images, need_images
from madkit.tasks.importing.found import FoundFiles
from madkit.tasks.importing.plan import Advance, ImportOptions, ImportPlan, SplitPlan

_DOWNLOAD = "download vqacp_v2_train/test_questions/annotations.json (VQA-CP's page) and give their folder"


def plan(files: FoundFiles, options: ImportOptions) -> ImportPlan:
    """The plan for VQA-CP v2 below a folder.

    Raises:
        NotFoundError: neither split is there, questions lack their annotations or the reverse, or no folder or zip
            holds the images of train2014 or val2014.
        UsageProblem: several files of one name.
    """
    splits: dict[str, tuple[Path, Path]] = {}
    for name in ("train", "test"):
        questions = files.one(rf"vqacp_v2_{name}_questions\.json", f"VQA-CP's {name} questions")
        annotations = files.one(rf"vqacp_v2_{name}_annotations\.json", f"VQA-CP's {name} annotations")
        if questions is not None and annotations is not None:
            splits[name] = (questions, annotations)
        elif questions is not None or annotations is not None:
            absent = "annotations" if annotations is None else "questions"
            raise NotFoundError(
                f"{questions or annotations} needs vqacp_v2_{name}_{absent}.json, which is not below {files.root}.",
                hint=_DOWNLOAD,
            )
    if not splits:
        raise NotFoundError(f"There are no files of VQA-CP v2 below {files.root}.", hint=_DOWNLOAD)
    images: dict[str, Path] = {}
    for questions, _ in splits.values():
        names = first_images(questions, None, parts=2)
        images |= need_images(files, {part: found for part, found in names.items() if part not in images})
    return ImportPlan(
        task="vqa",
        source="vqa-cp-v2",
        title="VQA under changing priors (VQA-CP v2)",
        splits=[_split(name, *paths, images) for name, paths in splits.items()],
        images_root=common_folder(images.values()) if images else files.root,
        cut_dev="train" in splits,
        notes=[
            f"vqacp_v2_{name}_*.json are not there, so there is no split '{name}'."
            for name in ("train", "test")
            if name not in splits
        ],
    )


def _split(name: str, questions: Path, annotations: Path, images: Mapping[str, Path]) -> SplitPlan:
    def read(advance: Advance) -> Iterator[Example]:
        return iter_vqa(questions, annotations, images or questions.parent, advance=advance)

    return SplitPlan(name=name, official=name, read=read, files=(annotations, questions))
