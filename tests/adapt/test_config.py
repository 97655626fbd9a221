"""Settings of an adaptation."""

from __future__ import annotations

from pathlib import Path

from madkit.adapt.config import LoraConfig, load_adapt_config


def test_a_section_given_as_a_mapping_keeps_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("lora: {rank: 2, targets: [query, value]}\n")
    config = load_adapt_config(path, {"lora": {"alpha": 4.0}})
    assert config.lora == LoraConfig(rank=2, alpha=4.0, targets=["query", "value"])
    assert load_adapt_config(path, {"lora": {"targets": "mlp"}}).lora == LoraConfig(rank=2, targets="mlp")
