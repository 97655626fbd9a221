"""Import of VQA v2: the owners' four zips (or what they hold) and COCO's images; LXMERT's lists where these are absent.

The owners' validation split is the one that results are reported on ("test"); a development split is cut from train by
image. test2015 and test-dev2015 have no answers: they become "submission" and "submission-dev".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from madkit.core.errors import DataError, NotFoundError
from madkit.tasks.example import Example
from madkit.tasks.formats.json_stream import JsonList
from madkit.tasks.formats.vqa import iter_vqa
from madkit.tasks.formats.vqa_lxmert import iter_lxmert_vqa
from madkit.tasks.importing.coco_images import common_folder, find_images, first_images, need_images
from madkit.tasks.importing.found import FoundFiles
from madkit.tasks.importing.plan import Advance, ImportOptions, ImportPlan, Read, SplitPlan

_SPLITS = {"train2014": "train", "val2014": "test", "test2015": "submission", "test-dev2015": "submission-dev"}
_IMAGES = {subset: subset for subset in _SPLITS} | {"test-dev2015": "test2015"}
_ARCHIVES = {"train2014": "Train", "val2014": "Val", "test2015": "Test", "test-dev2015": "Test"}
_PUBLISHED = {"train2014": 443_757, "val2014": 214_354, "test2015": 447_793}
_DOWNLOAD = "download v2_Questions_*_mscoco.zip and v2_Annotations_*_mscoco.zip from visualqa.org and give their folder"
# LXMERT trains on train and nominival and keeps 5,000 val images (minival) apart; together the two are val2014.
_LXMERT = {"train": ("train",), "test": ("nominival", "minival"), "submission": ("test",)}

_LXMERT_NOTE = (
    "LXMERT's files hold soft scores in place of the ten answers: accuracy is the soft score of the predicted answer, "
    "not the official evaluation."
)


def plan(files: FoundFiles, options: ImportOptions) -> ImportPlan:
    """The plan for VQA v2 below a folder.

    Raises:
        NotFoundError: neither train2014 nor val2014 is there, questions lack their annotations or the reverse, or no
            folder or zip holds a labelled split's images.
        UsageProblem: several files of one name.
        DataError: a file's name and its `data_subtype` name two parts.
    """
    questions = {subset: path for subset in _SPLITS if (path := _questions(files, subset)) is not None}
    annotations = {subset: path for subset in _SPLITS if (path := _annotations(files, subset)) is not None}
    if not questions and not annotations:
        lists = _lxmert_lists(files)
        if lists:
            return _lxmert_plan(files, lists)
    for subset in ("train2014", "val2014"):
        _need_both(files, subset, questions.get(subset), annotations.get(subset))
    if not annotations:
        raise NotFoundError(f"There are no labelled questions of VQA v2 below {files.root}.", hint=_DOWNLOAD)
    made = ImportPlan(
        task="vqa",
        source="vqa",
        title="Visual Question Answering (VQA v2)",
        splits=[],
        images_root=files.root,
        cut_dev="train2014" in questions,
    )
    for key, files_of in (("questions", questions), ("annotations", annotations)):
        for subset, path in files_of.items():
            _is_what_it_is_called(path, key, subset)
    roots = []
    for subset, path in questions.items():
        names = first_images(path, _IMAGES[subset])
        if subset not in annotations and None in find_images(files, names).values():
            made.notes.append(
                f"The images of {_IMAGES[subset]} are not there, so there is no split '{_SPLITS[subset]}'."
            )
            continue
        folder = need_images(files, names).get(_IMAGES[subset], files.root)
        roots.append(folder)
        made.splits.append(_split(subset, path, annotations.get(subset), folder, made.notes))
    for subset in ("train2014", "val2014"):
        if subset not in questions:
            made.notes.append(f"{subset} is not there, so there is no split '{_SPLITS[subset]}'.")
    made.images_root = common_folder(roots)
    return made


def _is_what_it_is_called(path: Path, key: str, subset: str) -> None:
    """Raise DataError for a file that says itself that it is another part, as where files were renamed."""
    entries = JsonList(path, key)
    next(iter(entries), None)
    theirs = entries.wrapper.get("data_subtype")
    if theirs in _SPLITS and theirs != subset:
        raise DataError(
            f"{path}, data_subtype: the file holds {theirs}, and its name says {subset}.",
            hint="give the files their owners' names, or unpack them again",
        )


def _split(subset: str, questions: Path, annotations: Path | None, images: Path, notes: list[str]) -> SplitPlan:
    def read(advance: Advance) -> Iterator[Example]:
        count = 0
        for example in iter_vqa(questions, annotations, images, subset=subset, advance=advance):
            count += 1
            yield example
        published = _PUBLISHED.get(subset, count)
        if count != published:
            notes.append(f"{questions.name} has {count:,} questions; VQA v2's {subset} has {published:,}.")

    return SplitPlan(
        name=_SPLITS[subset],
        official=subset,
        read=read,
        files=(questions,) if annotations is None else (annotations, questions),
        labelled=annotations is not None,
    )


def _questions(files: FoundFiles, subset: str) -> Path | None:
    name, what = rf"OpenEnded_mscoco_{subset}_questions\.json", f"the questions of {subset}"
    return files.one(f"v2_{name}", what) or files.one(name, what)


def _annotations(files: FoundFiles, subset: str) -> Path | None:
    name, what = rf"mscoco_{subset}_annotations\.json", f"the annotations of {subset}"
    return files.one(f"v2_{name}", what) or files.one(name, what)


def _need_both(files: FoundFiles, subset: str, questions: Path | None, annotations: Path | None) -> None:
    here = questions or annotations
    if here is None or (questions is not None and annotations is not None):
        return
    kind, absent = (
        ("Annotations", f"v2_mscoco_{subset}_annotations.json")
        if annotations is None
        else ("Questions", f"v2_OpenEnded_mscoco_{subset}_questions.json")
    )
    raise NotFoundError(
        f"{here} needs {absent} beside it, which is not below {files.root}.",
        hint=f"add v2_{kind}_{_ARCHIVES[subset]}_mscoco.zip from visualqa.org",
    )


def _lxmert_lists(files: FoundFiles) -> dict[str, Path]:
    """LXMERT's files by name; a list of the same name with other entries is none."""
    found: dict[str, Path] = {}
    for name in [name for names in _LXMERT.values() for name in names]:
        candidates = [path for path in files.matching(rf"{name}\.json") if _is_lxmert(path)]
        if candidates:
            alone = len(candidates) == 1
            found[name] = candidates[0] if alone else files.need(rf"{name}\.json", f"LXMERT's {name}")
    return found if found.keys() & {"train", "nominival", "minival"} else {}


def _is_lxmert(path: Path) -> bool:
    try:
        first = next(iter(JsonList(path, "questions")), None)
    except DataError:
        return False
    return isinstance(first, dict) and {"img_id", "sent", "question_id"} <= first.keys()


def _lxmert_plan(files: FoundFiles, lists: Mapping[str, Path]) -> ImportPlan:
    made = ImportPlan(
        task="vqa",
        source="vqa",
        title="Visual Question Answering (VQA v2, LXMERT's files)",
        splits=[],
        images_root=files.root,
        cut_dev="train" in lists,
        notes=[_LXMERT_NOTE],
    )
    folders: dict[str, Path] = {}
    for split, names in _LXMERT.items():
        paths = [lists[name] for name in names if name in lists]
        if not paths:
            continue
        wanted = {part: found for path in paths for part, found in first_images(path, None).items()}
        if split == "submission" and None in find_images(files, wanted).values():
            made.notes.append(f"The images of {', '.join(wanted)} are not there, so there is no split '{split}'.")
            continue
        images = need_images(files, wanted)
        folders |= images
        made.splits.append(
            SplitPlan(
                name=split,
                official=" + ".join(path.stem for path in paths),
                read=_lxmert_reader(paths, images),
                files=tuple(paths),
                labelled=split != "submission",
            )
        )
        absent = [name for name in names if name not in lists]
        if absent and split == "test":
            made.notes.append(f"{absent[0]}.json is not there, so 'test' is a part of val2014.")
    made.images_root = common_folder(folders.values())
    return made


def _lxmert_reader(paths: Sequence[Path], images: Mapping[str, Path]) -> Read:
    def read(advance: Advance) -> Iterator[Example]:
        seen: dict[str, Path] = {}
        for path in paths:
            for example in iter_lxmert_vqa(path, images, advance=advance):
                if seen.setdefault(example.id, path) is not path:
                    raise DataError(
                        f"{path}: 'question_id' {example.id} stands in {seen[example.id].name} too.",
                        hint="give each part of LXMERT's lists once: nominival.json and minival.json share no question",
                    )
                yield example

    return read
