"""UNITER against Hugging Face's BERT on the same weights, and against its own promises about padding and tags."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertModel

from madkit.students.interface import StudentInputs
from madkit.students.uniter import UniterConfig, UniterModel

SMALL = UniterConfig(
    vocab_size=60, hidden_size=32, layers=2, heads=4, intermediate_size=48, max_positions=24, region_dim=10
)


def build(config: UniterConfig = SMALL) -> UniterModel:
    torch.manual_seed(0)
    model = UniterModel(config)
    for parameter in model.parameters():  # away from the special values of a fresh network
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def inputs(texts: list[int], regions: list[int], *, pad_text: int = 0, pad_regions: int = 0) -> StudentInputs:
    """Random sequences with these numbers of tokens, over images with these numbers of regions."""
    generator = torch.Generator().manual_seed(1)
    count, length, most = len(texts), max(texts) + pad_text, max(regions) + pad_regions
    ids = torch.zeros(count, length, dtype=torch.long)
    mask = torch.zeros(count, length, dtype=torch.bool)
    features, boxes = torch.full((count, most, 10), 7.0), torch.full((count, most, 4), 0.5)
    region_mask = torch.zeros(count, most, dtype=torch.bool)
    for row, (n, r) in enumerate(zip(texts, regions, strict=True)):
        ids[row, :n] = torch.randint(5, 60, (n,), generator=generator)
        mask[row, :n] = True
        features[row, :r] = torch.randn(r, 10, generator=generator)
        low = torch.rand(r, 2, generator=generator) * 0.5
        boxes[row, :r] = torch.cat([low, low + 0.3], dim=1)
        region_mask[row, :r] = True
    return StudentInputs(
        input_ids=ids,
        token_type_ids=torch.where(mask & (torch.arange(length) > 3), 2, 0),
        text_mask=mask,
        image_index=torch.arange(count),
        region_features=features,
        region_boxes=boxes,
        region_mask=region_mask,
        tag_regions=torch.full((count, length), -1),
        n_candidates=1,
    )


def test_without_regions_it_is_bert() -> None:
    model = build()
    bert = BertModel(
        BertConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=24, type_vocab_size=4,
        )
    ).eval()  # fmt: skip
    ours = {k: v for k, v in model.state_dict().items() if not k.startswith(("img_embeddings", "tag_layer_norm"))}
    report = bert.load_state_dict(ours, strict=False)
    assert not report.unexpected_keys
    assert all("position_ids" in key for key in report.missing_keys)
    batch = inputs([9, 6], [1, 1])
    batch = replace(batch, region_mask=torch.zeros_like(batch.region_mask))
    with torch.no_grad():
        pooled, states = model(batch)[:2]
        theirs = bert(batch.input_ids, batch.text_mask, batch.token_type_ids, output_hidden_states=True)
    assert torch.allclose(pooled, theirs.pooler_output, atol=1e-5)
    for mine, his in zip(states, theirs.hidden_states, strict=True):
        real = batch.text_mask
        assert torch.allclose(mine[:, : real.shape[1]][real], his[real], atol=1e-5)


def test_padding_changes_nothing() -> None:
    model = build()
    with torch.no_grad():
        pooled, states = model(inputs([9, 6], [3, 2]))[:2]
        padded, more = model(inputs([9, 6], [3, 2], pad_text=4, pad_regions=3))[:2]
    assert torch.allclose(pooled, padded, atol=1e-5)
    assert torch.allclose(states[-1][0, 9:12], more[-1][0, 13:16], atol=1e-5)


def test_a_sequence_alone_equals_itself_in_a_batch() -> None:
    """Padded sequences give what UNITER's compacted ones give: positions are counted on text alone."""
    model = build()
    both = inputs([9, 6], [3, 2])
    with torch.no_grad():
        pooled, _ = model(both)[:2]
        for row, (n, r) in enumerate(zip([9, 6], [3, 2], strict=True)):
            alone = StudentInputs(
                both.input_ids[row : row + 1, :n], both.token_type_ids[row : row + 1, :n],
                both.text_mask[row : row + 1, :n], torch.zeros(1, dtype=torch.long),
                both.region_features[row : row + 1, :r], both.region_boxes[row : row + 1, :r],
                both.region_mask[row : row + 1, :r], both.tag_regions[row : row + 1, :n], 1,
            )  # fmt: skip
            assert torch.allclose(model(alone)[0][0], pooled[row], atol=1e-5)


def test_candidates_share_their_image() -> None:
    model = build()
    batch = inputs([5, 5], [3, 2])
    shared = replace(batch, image_index=torch.tensor([0, 0]), region_features=batch.region_features[:1],
                     region_boxes=batch.region_boxes[:1], region_mask=batch.region_mask[:1])  # fmt: skip
    repeated = replace(batch, region_features=batch.region_features[[0, 0]], region_boxes=batch.region_boxes[[0, 0]],
                       region_mask=batch.region_mask[[0, 0]])  # fmt: skip
    with torch.no_grad():
        assert torch.allclose(model(shared)[0], model(repeated)[0], atol=1e-6)


def compacted(model: UniterModel, batch: StudentInputs) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """UNITER as its authors run it: regions follow the last real text token of each sequence, padding is at the end.

    Gives pooled states, and the last layer's states of the real tokens of each sequence.
    """
    words = model.embeddings(batch.input_ids, token_type_ids=batch.token_type_ids)
    region_type = model.embeddings.token_type_embeddings.weight[1]
    regions, _ = model.img_embeddings(batch.region_features, batch.region_boxes, region_type)
    both = torch.cat([words, regions[batch.image_index]], dim=1)
    real = torch.cat([batch.text_mask, batch.region_mask[batch.image_index]], dim=1)
    lengths = real.sum(1)
    hidden = torch.zeros(len(both), int(lengths.max()), both.shape[2])
    for row, n in enumerate(lengths.tolist()):
        hidden[row, :n] = both[row, real[row]]
    there = torch.arange(hidden.shape[1]) < lengths[:, None]
    additive = (~there)[:, None, None, :] * -10000.0
    for layer in model.encoder.layer:
        result = layer(hidden, additive)
        hidden = result[0] if isinstance(result, tuple) else result
    return model.pooler(hidden), [hidden[row, :n] for row, n in enumerate(lengths.tolist())]


def test_padded_sequences_equal_compacted_ones() -> None:
    model = build()
    batch = inputs([9, 6, 4], [3, 2, 5], pad_text=2, pad_regions=1)
    with torch.no_grad():
        pooled, states = model(batch)[:2]
        wanted, rows = compacted(model, batch)
    assert torch.allclose(pooled, wanted, atol=1e-5)
    real = torch.cat([batch.text_mask, batch.region_mask], dim=1)
    for row, expected in enumerate(rows):
        assert torch.allclose(states[-1][row, real[row]], expected, atol=1e-5)


def test_a_tag_links_its_token_to_its_region_and_to_no_other() -> None:
    model = build()
    batch = inputs([6], [3])
    tags = batch.tag_regions.clone()
    tags[0, 2] = 1
    tagged = replace(batch, tag_regions=tags)
    with torch.no_grad():
        plain, linked = model(batch)[1][0], model(tagged)[1][0]
        changed = (plain - linked).abs().amax(-1)[0] > 1e-6
        assert changed.tolist() == [i == 2 for i in range(9)]
        other = batch.region_features.clone()
        other[0, 2] += 1
        moved = model(replace(tagged, region_features=other))[1][0]
        assert torch.allclose(moved[0, 2], linked[0, 2])


def test_a_tag_gain_of_zero_is_uniter() -> None:
    torch.manual_seed(0)
    model = UniterModel(replace(SMALL, tag_gain=0.0)).eval()
    batch = inputs([6], [3])
    tags = batch.tag_regions.clone()
    tags[0, 2] = 1
    with torch.no_grad():
        assert torch.equal(model(batch)[0], model(replace(batch, tag_regions=tags))[0])


@pytest.mark.parametrize(("layers", "width", "millions"), [(12, 768, 111), (24, 1024, 338)])
def test_base_and_large_have_uniters_size(layers: int, width: int, millions: int) -> None:
    config = UniterConfig(layers=layers, hidden_size=width, heads=width // 64, intermediate_size=4 * width)
    with torch.device("meta"), torch.no_grad():
        size = sum(p.numel() for p in UniterModel(config).parameters())
    assert abs(size / 1e6 - millions) < 3  # formats.md counts a task head in
