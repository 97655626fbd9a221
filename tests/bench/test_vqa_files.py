from __future__ import annotations

from collections import Counter
from pathlib import Path

from madkit.bench.vqa_files import write_vqa_files
from madkit.tasks.formats.vqa import read_vqa


def test_the_files_are_read_and_look_like_vqa(tmp_path: Path) -> None:
    paths = write_vqa_files(tmp_path, questions=6000, seed=3)
    assert [path.name for path in paths.values()] == [
        "v2_OpenEnded_mscoco_train2014_questions.json",
        "v2_mscoco_train2014_annotations.json",
        "v2_OpenEnded_mscoco_val2014_questions.json",
        "v2_mscoco_val2014_annotations.json",
    ]
    train = read_vqa(paths["train2014_questions"], paths["train2014_annotations"], tmp_path)
    val = read_vqa(paths["val2014_questions"], paths["val2014_annotations"], tmp_path)
    assert (len(train), len(val)) == (4046, 1954)
    assert train[0].image.path.name.startswith("COCO_train2014_0000")
    assert not {e.image.id for e in train} & {e.image.id for e in val}
    assert 4.5 < len(train) / len({e.image.id for e in train}) < 6.5
    kinds = Counter(e.answer_type for e in train)
    assert abs(kinds["yes/no"] / len(train) - 0.376) < 0.04
    assert abs(kinds["number"] / len(train) - 0.13) < 0.04
    assert len({answer for e in train for answer in e.annotations}) > 2000
    assert sum(max(e.answers or {}, key=lambda a: (e.answers or {})[a]) == e.main_answer for e in train) > 3500


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first, again, other = (
        [path.read_bytes() for path in write_vqa_files(tmp_path / name, 200, seed).values()]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert first != other
