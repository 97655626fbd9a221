"""ViLT against transformers' own class on the same weights and pixels, on pictures of any shape."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import ViltConfig as HfConfig
from transformers import ViltModel

from madkit.distill.settings.recipes import load_recipe
from madkit.distill.stage import set_dropout
from madkit.students import vilt
from madkit.students.vilt import ViltConfig

torch.set_num_threads(1)
SMALL = ViltConfig(
    vocab_size=60,
    hidden_size=32,
    layers=2,
    heads=4,
    intermediate_size=48,
    max_positions=24,
    image_size=32,
    patch_size=8,
)


def patches(pixels: torch.Tensor, rows: int, columns: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells of [3, H, W] row by row: features [R, 3 * size * size] and boxes [R, 4]."""
    cells, boxes = [], []
    for row in range(rows):
        for column in range(columns):
            cells.append(pixels[:, row * size : (row + 1) * size, column * size : (column + 1) * size].flatten())
            boxes.append([column / columns, row / rows, (column + 1) / columns, (row + 1) / rows])
    return torch.stack(cells), torch.tensor(boxes)


@torch.no_grad()
@pytest.mark.parametrize("grids", [[(4, 4), (4, 4)], [(3, 5), (4, 2)], [(1, 6), (5, 1)]])
def test_it_is_transformers_vilt(inputs, shaken, grids) -> None:
    ours = shaken(vilt.ViltModel(SMALL))
    config = HfConfig(**{**SMALL.hugging_face().to_dict(), "max_image_length": -1})
    theirs = ViltModel(config).eval()
    report = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not report.unexpected_keys
    assert not report.missing_keys
    most = max(rows * columns for rows, columns in grids)
    batch = inputs([9, 6, 7, 5], [most, most], candidates=2, types=(0, 1), dim=192)
    tall, wide = (8 * max(grid[side] for grid in grids) for side in (0, 1))
    pixels, real = torch.zeros(2, 3, tall, wide), torch.zeros(2, tall, wide, dtype=torch.long)
    features, boxes = torch.full_like(batch.region_features, 3.0), torch.full_like(batch.region_boxes, 0.25)
    boxes[..., 2:] = 0.5
    mask = torch.zeros_like(batch.region_mask)
    for number, (rows, columns) in enumerate(grids):
        picture = torch.randn(3, 8 * rows, 8 * columns, generator=torch.Generator().manual_seed(number))
        pixels[number, :, : 8 * rows, : 8 * columns], real[number, : 8 * rows, : 8 * columns] = picture, 1
        features[number, : rows * columns], boxes[number, : rows * columns] = patches(picture, rows, columns)
        mask[number, : rows * columns] = True
    batch = replace(batch, region_features=features, region_boxes=boxes, region_mask=mask)
    index = batch.image_index
    expected = theirs(
        input_ids=batch.input_ids, attention_mask=batch.text_mask.long(), token_type_ids=batch.token_type_ids,
        pixel_values=pixels[index], pixel_mask=real[index], output_hidden_states=True,
    )  # fmt: skip
    mine, T = ours(batch), batch.input_ids.shape[1]
    torch.testing.assert_close(mine.pooled, expected.pooler_output, atol=1e-5, rtol=1e-5)
    text, close = batch.text_mask, {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(mine.states[-1][:, :T][text], expected.last_hidden_state[:, :T][text], **close)
    torch.testing.assert_close(mine.states[1][:, :T][text], expected.hidden_states[1][:, :T][text], **close)
    # theirs: the class token, then an image's real patches in an order drawn by chance, then padding
    for row, number in enumerate(index.tolist()):
        n = int(mask[number].sum())
        one, other = mine.states[-1][row, T : T + n], expected.last_hidden_state[row, T + 1 : T + 1 + n]
        torch.testing.assert_close(one[one[:, 0].argsort()], other[other[:, 0].argsort()], **close)


def test_its_papers_dropout_spares_attention_weights(shaken, inputs) -> None:
    recipe = load_recipe("paper", student="vilt-base", task="vqa")
    assert recipe.optim["dropout"] == 0.1
    model = vilt.ViltModel(replace(SMALL, dropout=0.3))
    set_dropout(model, recipe.optim["dropout"])
    rates = {name: part.p for name, part in model.named_modules() if isinstance(part, torch.nn.Dropout)}
    assert set(rates.values()) == {0.1}
    assert {name.partition(".layer.")[0] for name in rates} == {
        "embeddings.text_embeddings.dropout", "embeddings.dropout", "encoder",
    }  # fmt: skip
    assert not any("attention.attention" in name for name in rates)
    assert sum(name.startswith("encoder.layer.0.") for name in rates) == 2  # what attention and the MLP give
