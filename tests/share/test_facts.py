"""What leaves the machine says nothing of it, of several teachers neither."""

from __future__ import annotations

import json

from madkit.share.facts import public_manifest, teacher_licence


def test_paths_of_several_teachers_stay_here() -> None:
    names = ["clip-vit-l14", "hf:/home/me/dino+roberta-base", "local:/home/me/own"]
    manifest = {
        "student": "mini-uniter",
        "teacher": ", ".join(names),
        "cache_key": "a, b, c",
        "teachers": [{"name": name, "cache": key, "weight": 1.0} for name, key in zip(names, "abc", strict=True)]
        + [{"name": "own-lora", "cache": "d", "weight": 1.0, "adapted": {"name": "own-lora", "base": names[2]}}],
        "config": {"teachers": {name: {"weight": 1.0, "mad": {}} for name in names}},
    }
    public = public_manifest(manifest)
    assert "/home/me" not in json.dumps(public)
    assert public["teacher"] == "clip-vit-l14, hf:dino+roberta-base, local:own"
    *plain, adapted = public["teachers"]
    assert [one["name"] for one in plain] == list(public["config"]["teachers"])
    assert adapted["adapted"] == {"name": "own-lora", "base": "local:own"}


def test_every_teacher_has_a_licence_of_its_own() -> None:
    assert teacher_licence("clip-vit-l14") == "MIT"
    said = teacher_licence("clip-vit-l14, dinov2-vit-l14+own")
    assert said == "clip-vit-l14: MIT; dinov2-vit-l14: Apache-2.0; own: unknown"
